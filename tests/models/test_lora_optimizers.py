"""The optimizers beside their authors' own, and what a step of them costs."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from synthdet.errors import SynthdetError
from synthdet.models.lora_optimizers import (
    Prodigy,
    make_optimizer,
    pack_optimizer,
    unpack_optimizer,
)

SHAPES = ((3, 5), (7,), (2, 4, 3, 3), (1, 6))


class Calls(TorchDispatchMode):
    """Counts what is sent to the device, views left out, and what is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.syncs = 0, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        self.calls += not func.is_view
        self.syncs += "_local_scalar_dense" in str(func)
        return func(*args, **(kwargs or {}))


def make_parameters(seed: int = 0) -> list[Parameter]:
    generator = torch.Generator().manual_seed(seed)
    made = [Parameter(torch.randn(*shape, generator=generator)) for shape in SHAPES]
    made[1].data.zero_()  # as every second matrix of a LoRA at the start
    return made


def give_gradients(parameters: list[Parameter], step: int) -> None:
    """Gradients of a bowl around fixed targets, with noise."""
    generator = torch.Generator().manual_seed(100 + step)
    for number, parameter in enumerate(parameters):
        noise = 0.1 * torch.randn(parameter.shape, generator=generator)
        parameter.grad = (parameter.detach() - 0.1 * number) + noise


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_prodigy_walks_as_its_authors_program_does(weight_decay: float) -> None:
    prodigyopt = pytest.importorskip("prodigyopt")
    ours, theirs = make_parameters(), make_parameters()
    one = Prodigy(ours, weight_decay=weight_decay)
    other = prodigyopt.Prodigy(
        theirs,
        lr=1.0,
        weight_decay=weight_decay,
        use_bias_correction=True,
        safeguard_warmup=True,
    )
    for step in range(60):
        rate = 1.0 if step < 40 else 0.5
        for optimizer, parameters in ((one, ours), (other, theirs)):
            optimizer.param_groups[0]["lr"] = rate
            give_gradients(parameters, step)
            optimizer.step()
        d = float(one.pack()[0]["d"])
        assert d == pytest.approx(other.param_groups[0]["d"], rel=1e-4)
        for mine, his in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, his, rtol=2e-4, atol=1e-5)
    assert d > 3e-5, "it grows from 1e-6"


def test_prodigy_shortens_gradients_as_torch_does() -> None:
    ours, theirs = make_parameters(), make_parameters()
    one, other = Prodigy(ours, max_gradient_norm=1.0), Prodigy(theirs)
    for step in range(20):
        give_gradients(ours, step)
        one.step()
        give_gradients(theirs, step)
        norm = torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        other.step()
        torch.testing.assert_close(one.gradient_norm, norm)
    assert norm > 1
    for mine, his in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, his)


def test_prodigy_takes_few_calls_and_waits_for_nothing() -> None:
    parameters = [Parameter(torch.randn(4, 3)) for _ in range(200)]
    optimizer = Prodigy(parameters, weight_decay=0.01)
    give_gradients(parameters, 0)
    optimizer.step()
    give_gradients(parameters, 1)
    with Calls() as counted:
        optimizer.step()
    assert counted.syncs == 0
    assert counted.calls <= 60


def test_prodigy_without_a_gradient_stays_where_it_is() -> None:
    parameters = make_parameters()
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = Prodigy(parameters)
    optimizer.step()
    give_gradients(parameters[:1], 0)
    optimizer.step()
    assert not torch.equal(parameters[0], before[0])
    for parameter, old in zip(parameters[1:], before[1:], strict=True):
        assert torch.equal(parameter, old)


@pytest.mark.parametrize("name", ["adamw", "prodigy"])
def test_a_state_that_is_taken_over_goes_on_with_the_same_bits(name: str) -> None:
    names = [str(number) for number in range(len(SHAPES))]

    def walk(parameters: list[Parameter], optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            give_gradients(parameters, step)
            optimizer.step()

    whole = make_parameters()
    walk(whole, make_optimizer(name, whole, 1.0), range(6))
    first = make_parameters()
    optimizer = make_optimizer(name, first, 1.0)
    walk(first, optimizer, range(3))
    tensors, numbers = pack_optimizer(optimizer, dict(zip(names, first, strict=True)))
    second = make_parameters(seed=1)
    for parameter, weights in zip(second, first, strict=True):
        parameter.data.copy_(weights)
    optimizer = make_optimizer(name, second, 1.0)
    # Prodigy's start is part of the state.
    unpack_optimizer(
        optimizer,
        dict(zip(names, second, strict=True)),
        {key: tensor.clone() for key, tensor in tensors.items()},
        numbers,
    )
    walk(second, optimizer, range(3, 6))
    for parameter, weights in zip(second, whole, strict=True):
        assert torch.equal(parameter, weights)


def test_eight_bits_without_their_library_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(SynthdetError, match=r"finetune\.optimizer: adamw8bit needs bitsandbytes"):
        make_optimizer("adamw8bit", make_parameters(), 1e-4)


def test_eight_bits_with_their_library() -> None:
    pytest.importorskip("bitsandbytes")
    names = [str(number) for number in range(len(SHAPES))]
    parameters = make_parameters()
    optimizer = make_optimizer("adamw8bit", parameters, 1e-2)
    before = parameters[0].detach().clone()
    for step in range(2):
        give_gradients(parameters, step)
        optimizer.step()
    assert not torch.equal(parameters[0], before)
    tensors, numbers = pack_optimizer(optimizer, dict(zip(names, parameters, strict=True)))
    assert tensors
    assert all(isinstance(value, int) for value in numbers.values())
