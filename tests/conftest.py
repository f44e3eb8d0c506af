"""One Hypothesis profile: the same examples on every run, no deadline on a shared machine."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "fixed", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("deep", parent=settings.get_profile("fixed"), max_examples=3000)
settings.load_profile("fixed")
