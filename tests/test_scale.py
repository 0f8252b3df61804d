"""docs/scale.md's Kubernetes file, and the model of a step in benchmarks/scale.py."""

import json
import re
import sys

import pytest
import yaml
from conftest import ROOT

PAGE = (ROOT / "docs/scale.md").read_text()


@pytest.fixture
def scale(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "")
    import scale

    yield scale
    for name in ("scale", "speed"):
        sys.modules.pop(name, None)


def test_the_kubernetes_file_lets_a_pod_save():
    """Process 1 gets the signal itself, and has the time; the run folder and the cache are on the shared volume."""
    service, job = yaml.safe_load_all(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])
    pod = job["spec"]["template"]["spec"]
    (train,) = pod["containers"]
    command, variables = train["command"], {each["name"]: each.get("value") for each in train["env"]}
    assert command[0] == "torchrun"
    assert pod["terminationGracePeriodSeconds"] > int(variables["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
    assert command[command.index("--nnodes") + 1] == str(job["spec"]["completions"]) == str(job["spec"]["parallelism"])
    assert f"{job['metadata']['name']}-0.{service['metadata']['name']}:" in command[command.index("--rdzv-endpoint") + 1]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert (ROOT / "recipes" / next(word for word in command if word.endswith(".py")).rpartition("/")[2]).exists()
    mounts = [mount["mountPath"] for mount in train["volumeMounts"]]
    for place in (command[command.index("--out") + 1], variables["ONELOOP_CACHE"]):
        assert any(place.startswith(f"{mount}/") for mount in mounts), place


def test_a_step_is_its_work_a_start_for_each_collective_and_the_bytes_of_a_ring(scale):
    mib = 1 << 20
    assert scale.buckets(3 * mib) == [mib, 2 * mib]
    assert scale.buckets(100) == [100]
    assert sum(scale.buckets(102_228_128)) == 102_228_128
    assert len(scale.buckets(102_228_128)) == 5
    alone = scale.model(mib, 1, 0.0, 1e9, 0.25)
    assert alone == 0.25  # one process sends nothing
    two, many = (scale.model(mib, world, 0.5, 1e9, 0.0) for world in (2, 1000))
    assert two == pytest.approx(1.0 + (mib + 8) / 1e9)
    assert many == pytest.approx(1.0 + 2 * 0.999 * (mib + 8) / 1e9)


def test_the_page_quotes_the_prediction_and_the_measurement(scale):
    (path,) = (ROOT / "benchmarks/results").glob("scale-*.json")
    kept = json.loads(path.read_text())
    assert kept["predicted"] == scale.predicted()
    for row in kept["predicted"]:
        name = f"{row['gbit']} Gbit/s, {row['ms']} ms"
        (line,) = re.findall(rf"^\| {name} \| {row['world']} \|(.*)\|$", PAGE, re.MULTILINE)
        said = [float(word) for word in line.split("|")]
        assert said == [round(row["communication_ms"], 1), round(row["efficiency_none"], 2), round(row["efficiency_all"], 2)]
    for row in kept["rows"]:
        (line,) = re.findall(
            rf"^\| {row['gbit']:g} Gbit/s, {row['ms']:g} ms \| {row['world']} processes \|(.*)\|$", PAGE, re.MULTILINE
        )
        assert [word.strip() for word in line.split("|")] == [
            f"{row['steps'][net]:.0f} ({row['model'][net]:.0f})" for net in scale.COUNTS
        ]
