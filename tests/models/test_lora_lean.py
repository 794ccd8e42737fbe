"""The short way through a LoRA layer beside peft's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from synthdet.models.lora_lean import LoraLinear, LoraProjections, _attend_to, lean_layers
from synthdet.models.sdxl import load_pipeline
from tests.tiny import tiny_sdxl


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 10), nn.Linear(10, 4, bias=False)
        self.conv = nn.Conv1d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.conv(self.second(torch.relu(self.first(x))))
        return made


def make(**options: Any) -> Net:
    torch.manual_seed(0)
    net = Net().requires_grad_(False)
    config = LoraConfig(
        r=2, lora_alpha=5, init_lora_weights=False, target_modules=["first", "second", "conv"],
        **options,
    )  # fmt: skip
    inject_adapter_in_model(config, net)
    return net


def run(net: Net, x: Tensor, *, half: bool) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
    """Answer, gradient of the input, gradients of the LoRA."""
    x = x.clone().requires_grad_(True)
    net.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        answer = net(x)
    answer.float().square().mean().backward()
    return answer, x.grad, {n: p.grad for n, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("half", [False, True])
def test_it_gives_what_peft_gives(half: bool) -> None:
    net = make()
    if half:
        for name, parameter in net.named_parameters():
            if "lora" not in name:
                parameter.data = parameter.data.bfloat16()
    x = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1))
    expected, grad_x, grads = run(net, x, half=half)
    with lean_layers(net) as number:
        assert number == 2
        found, found_x, found_grads = run(net, x, half=half)
    tolerance: dict[str, Any] = {"atol": 0.05, "rtol": 0.05} if half else {}
    torch.testing.assert_close(found, expected, **tolerance)
    torch.testing.assert_close(found_x, grad_x, **tolerance)
    assert found_grads.keys() == grads.keys()
    for name, grad in grads.items():
        assert found_grads[name].dtype == torch.float32
        torch.testing.assert_close(found_grads[name], grad, **tolerance)
    assert all("forward" not in vars(module) for module in net.modules())


def test_gradients_are_true() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, a, b = (
        torch.randn(*shape, dtype=torch.float64, generator=generator)
        for shape in ((2, 3, 5), (4, 5), (4,), (2, 5), (4, 2))
    )
    for tensor in (x, a, b):
        tensor.requires_grad_(True)
    for scale in (1.0, 0.5):
        assert torch.autograd.gradcheck(LoraLinear.apply, (x, weight, bias, a, b, scale))
        assert torch.autograd.gradcheck(LoraLinear.apply, (x, weight, None, a, b, scale))
        pairs = (
            a,
            b,
            a.detach().flip(0).requires_grad_(True),
            (2 * b).detach().requires_grad_(True),
        )
        stacked = torch.cat([weight, weight.flip(1)])
        assert torch.autograd.gradcheck(LoraProjections.apply, (x, stacked, scale, *pairs))


@pytest.mark.parametrize("half", [False, True])
def test_a_whole_unet_gives_what_peft_gives(half: bool, tmp_path: Path) -> None:
    unet = load_pipeline(tiny_sdxl(tmp_path / "sdxl"), vae=None, dtype=torch.float32).unet
    unet.requires_grad_(False)
    names = ["to_k", "to_q", "to_v", "to_out.0", "ff.net.2", "conv1"]
    unet.add_adapter(LoraConfig(r=2, lora_alpha=3, init_lora_weights=False, target_modules=names))
    if half:
        for name, parameter in unet.named_parameters():
            if "lora" not in name:
                parameter.data = parameter.data.bfloat16()
    generator = torch.Generator().manual_seed(0)
    noise, states, pooled = (
        torch.randn(*shape, generator=generator).to(unet.dtype)
        for shape in ((2, 4, 16, 24), (2, 7, 20), (2, 12))
    )

    def step() -> tuple[Tensor, dict[str, Tensor]]:
        unet.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            answer = unet(
                noise,
                torch.tensor([3, 700]),
                encoder_hidden_states=states,
                added_cond_kwargs={
                    "text_embeds": pooled,
                    "time_ids": torch.zeros(2, 6).to(unet.dtype),
                },
                return_dict=False,
            )[0]
        answer.float().square().mean().backward()
        return answer, {n: p.grad for n, p in unet.named_parameters() if p.grad is not None}

    for checkpointing in (False, True):
        if checkpointing:
            unet.train()
            unet.enable_gradient_checkpointing()
        expected, grads = step()
        with lean_layers(unet) as number:
            assert number > 20
            assert any("forward" in vars(m) for m in unet.modules() if isinstance(m, Attention))
            found, found_grads = step()
        again, _ = step()
        assert torch.equal(again, expected)
        scale = float(expected.abs().max())
        assert float((found - expected).abs().max()) < (0.05 if half else 1e-4) * scale
        assert found_grads.keys() == grads.keys()
        for name, grad in grads.items():
            error = float((found_grads[name] - grad).norm())
            assert error <= (0.15 if half else 1e-3) * float(grad.norm()) + 1e-7, name


class Convolutions(nn.Module):
    """One whose LoRA is more work than its own weights' gradient, and three that are left to peft."""

    def __init__(self) -> None:
        super().__init__()
        self.reflecting = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.narrow = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.wide = nn.Conv2d(6, 48, 3, padding=1)
        self.grouped = nn.Conv2d(48, 4, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.grouped(
            torch.relu(self.wide(torch.relu(self.narrow(self.reflecting(x)))))
        )
        return made


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups")
def test_a_convolution_with_many_ranks_is_added_up_first() -> None:
    torch.manual_seed(0)
    net = Convolutions().requires_grad_(False)
    names = ["reflecting", "narrow", "wide", "grouped"]
    inject_adapter_in_model(
        LoraConfig(r=2, lora_alpha=5, init_lora_weights=False, target_modules=names), net
    )
    x = torch.randn(2, 4, 12, 9, generator=torch.Generator().manual_seed(1))
    expected, grad_x, grads = run(net, x, half=False)
    with lean_layers(net) as number:
        assert number == 1
        assert "forward" in vars(net.narrow)
        found, found_x, found_grads = run(net, x, half=False)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found_x, grad_x)
    assert found_grads.keys() == grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(found_grads[name], grad)
    assert all("forward" not in vars(module) for module in net.modules())
    with lean_layers(net, for_compiling=True) as number:
        assert number == 0
    for name, parameter in net.named_parameters():
        if "lora" not in name:
            parameter.data = parameter.data.bfloat16()
    with lean_layers(net) as number:
        assert number == 0, "what a LoRA adds would be rounded away"


@pytest.mark.parametrize(
    ("queries", "keys", "heads", "fused"),
    [
        (64, 77, 16, False),
        (128, 128, 16, False),
        (130, 130, 16, True),
        (256, 77, 16, True),
        (64, 77, 15, True),
    ],
)
def test_attention_over_few_and_many_tokens_is_the_same(
    queries: int, keys: int, heads: int, fused: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    taken: dict[str, bool] = {}
    found = []
    for kind in ("ours", "written out"):
        generator.manual_seed(0)
        q, k, v = (
            torch.randn(2, heads, number, 8, generator=generator).requires_grad_(True)
            for number in (queries, keys, keys)
        )
        if kind == "ours":
            seen = _attend_to(q, k, v)
            taken["fused"] = "FlashAttention" in type(seen.grad_fn).__name__
        else:
            seen = torch.softmax(q @ k.mT / 8**0.5, -1) @ v
        seen.square().sum().backward()
        found.append((seen, q.grad, k.grad, v.grad))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    assert taken["fused"] == fused


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_dropout": 0.5}])
def test_what_is_not_plain_is_left_alone(options: dict[str, Any]) -> None:
    with lean_layers(make(**options)) as number:
        assert number == 0
