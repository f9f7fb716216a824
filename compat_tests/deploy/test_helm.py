"""The chart, by Helm's own linter and renderer; nothing is asked of a cluster."""

from pathlib import Path
from typing import Any

import helm_python as helm
import pytest
import yaml
from helm_python import chart

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "vmm"
OPEN = {"keys": {"allowAnonymous": True}}
FULL = {
    "keys": {"existingSecret": "vmm-keys"},
    "settings": {"default_model": "llama3.2:1b", "max_audio_bytes": 536870912, "image_urls": "off"},
    "persistence": {"storageClass": "fast", "size": "5Gi"},
    "ingress": {"enabled": True, "className": "nginx", "host": "ai.example", "tlsSecret": "ai-tls"},
    "metrics": {
        "serviceMonitor": {"enabled": True, "keySecret": "vmm-metrics", "labels": {"release": "prometheus"}},
        "dashboard": {"enabled": True},
    },
    "podAnnotations": {"team": "ml"},
    "nodeSelector": {"gpu": "intel"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "extraEnv": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}],
    "imagePullSecrets": [{"name": "registry"}],
    "drainSeconds": 120,
}


def rendered(values: dict[str, Any]) -> dict[str, Any]:
    """Kind → object."""
    with helm.Chart.load(CHART) as loaded:
        files = loaded.render(values, name="demo", namespace="prod")
    objects = [yaml.safe_load(text) for name, text in files.items() if name.endswith(".yaml")]
    return {each["kind"]: each for each in objects if each}


def pod(objects: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = objects["Deployment"]["spec"]["template"]["spec"]
    return spec


def environment(objects: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in pod(objects)["containers"][0]["env"]}


@pytest.mark.parametrize("values", [OPEN, FULL])
def test_the_linter_finds_nothing(values: dict[str, Any]) -> None:
    report = chart.lint(CHART, values, strict=True)
    assert report["errors"] == []
    assert [each["error"] for each in report["messages"]] == ["icon is recommended"]


def test_nobody_is_let_in_by_default() -> None:
    with helm.Chart.load(CHART) as loaded, pytest.raises(helm.HelmError, match="who may ask"):
        loaded.render({}, name="demo")


def test_a_misspelt_value_is_refused() -> None:
    with helm.Chart.load(CHART) as loaded, pytest.raises(helm.HelmError, match="'kyes' not allowed"):
        loaded.render({"kyes": {}}, name="demo")


def test_the_smallest_installation() -> None:
    objects = rendered(OPEN)
    assert set(objects) == {"Deployment", "Service", "PersistentVolumeClaim"}
    assert environment(objects) == {
        "VMM_SHUTDOWN_TIMEOUT_S": "60",
        "VMM_ALLOW_ANONYMOUS": "true",
        "VMM_LOG_FORMAT": "json",
    }


def test_every_value_is_used() -> None:
    objects = rendered(FULL)
    assert set(objects) == {
        *("Deployment", "Service", "PersistentVolumeClaim", "Ingress", "ServiceMonitor", "ConfigMap"),
    }
    assert environment(objects) == {
        "VMM_SHUTDOWN_TIMEOUT_S": "120",
        "VMM_KEYS_FILE": "/keys/keys.toml",
        "VMM_DEFAULT_MODEL": "llama3.2:1b",
        "VMM_MAX_AUDIO_BYTES": "536870912",
        "VMM_IMAGE_URLS": "off",
        "VMM_LOG_FORMAT": "json",
        "HF_TOKEN": "",
    }
    spec = pod(objects)
    assert spec["terminationGracePeriodSeconds"] == 135
    assert spec["nodeSelector"] == FULL["nodeSelector"]
    assert spec["tolerations"] == FULL["tolerations"]
    assert spec["volumes"][2] == {"name": "keys", "secret": {"secretName": "vmm-keys"}}
    assert objects["PersistentVolumeClaim"]["spec"]["storageClassName"] == "fast"
    (endpoint,) = objects["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoint["authorization"]["credentials"] == {"name": "vmm-metrics", "key": "key"}
    (rule,) = objects["Ingress"]["spec"]["rules"]
    assert rule["host"] == "ai.example"


@pytest.mark.parametrize("values", [OPEN, FULL])
def test_the_service_finds_the_pod_and_the_probes_its_port(values: dict[str, Any]) -> None:
    objects = rendered(values)
    template = objects["Deployment"]["spec"]["template"]
    chosen = objects["Service"]["spec"]["selector"]
    assert chosen.items() <= template["metadata"]["labels"].items()
    assert chosen == objects["Deployment"]["spec"]["selector"]["matchLabels"]
    (container,) = template["spec"]["containers"]
    (port,) = container["ports"]
    assert objects["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert probes == {
        "startup": {"path": "/health/startup", "port": port["name"]},
        "liveness": {"path": "/health/live", "port": port["name"]},
        "readiness": {"path": "/health/ready", "port": port["name"]},
    }
    mounted = {each["name"] for each in container["volumeMounts"]}
    assert mounted == {each["name"] for each in template["spec"]["volumes"]}


@pytest.mark.parametrize("values", [OPEN, FULL])
def test_the_pod_has_no_rights(values: dict[str, Any]) -> None:
    """As the Pod Security Standard `restricted` asks."""
    spec = pod(rendered(values))
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
