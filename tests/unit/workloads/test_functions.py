"""The ten functions: each answers its event alike every time, per instance, whatever came in between."""

import pytest

from medes.runtimes import manifest
from medes.runtimes.host import standalone

SPECS = manifest.load_all(manifest.bundled_directory())


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_an_idempotent_event_has_one_answer(spec: manifest.FunctionSpec) -> None:
    with standalone.running_instances(spec, 1, seed=5, warm_requests=1) as (instance,):
        before = instance.invoke()
        other = instance.invoke(spec.seeded_event(77))
        assert instance.invoke() == before
        assert instance.invoke(spec.seeded_event(77)) == other
        assert other["result"] != before["result"]
        assert other["state_digest"] == before["state_digest"]
