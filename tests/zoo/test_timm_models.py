"""timm by registry: exported and compared with torch, beside whatever torchvision is installed."""

from __future__ import annotations

import pytest

from effc import zoo
from effc.core.check import check_model
from effc.core.errors import BackendUnavailable, ConfigError, FrontendError
from effc.zoo import timm_models


@pytest.fixture(scope="module", autouse=True)
def _needs_timm() -> None:
    try:
        timm_models.import_timm()
    except BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050"])
def test_exported_and_checked(name: str) -> None:
    """`build` compares the export with torch itself, so that it returns is the proof."""
    model = zoo.build(f"timm/{name}{{size=64,batch=2}}")
    check_model(model)
    assert model.graph.inputs[0].shape == (2, 3, 64, 64)


def test_random_weights_are_not_degenerate() -> None:
    net = timm_models.create("convnext_atto")  # layer scale starts at 1e-6
    for name, parameter in net.named_parameters():
        weight = parameter.detach()
        assert float(weight.abs().max()) > 1e-3, name
        assert weight.numel() == 1 or float(weight.std()) > 1e-3, name


def test_member() -> None:
    member = zoo.member("timm/resnet18")
    assert member.input_shape == (1, 3, 224, 224) and member.parameters == 11_689_512
    assert member.preprocess == "mean=0.485,0.456,0.406,std=0.229,0.224,0.225"


def test_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no architecture 'resnet19'") as caught:
        zoo.build("timm/resnet19")
    assert "did you mean" in caught.value.hint
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FrontendError, match="can't make 'resnet10t'") as error:
        zoo.build("timm/resnet10t{pretrained=true}")
    assert "HF_HUB_CACHE" in error.value.hint
