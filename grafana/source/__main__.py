"""Write the dashboards: ``python -m grafana.source``."""

from pathlib import Path

from grafana.source import DASHBOARDS
from grafana.source.model import text_of

FOLDER = Path(__file__).parents[1] / "dashboards"

for dashboard in DASHBOARDS:
    (FOLDER / f"{dashboard.name}.json").write_text(text_of(dashboard), encoding="utf-8")
