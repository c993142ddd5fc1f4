"""The composition root: builds a running proxy from its settings. `composition` shows how the parts fit together.

Nothing here handles a request.
"""

from proxy.app.composition import Running, base_url_of, running

__all__ = ["Running", "base_url_of", "running"]
