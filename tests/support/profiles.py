"""How many random examples tests try: HYPOTHESIS_PROFILE=slow takes ten thousand where the default takes a hundred."""

import os

from hypothesis import HealthCheck, settings

# No deadline: a test is about what is right, not about how fast a busy machine gets there.
settings.register_profile("default", deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("slow", parent=settings.get_profile("default"), max_examples=10_000)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "default")
settings.load_profile(PROFILE)

IS_SLOW_PROFILE = PROFILE == "slow"
