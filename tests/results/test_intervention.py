"""One network with and without an intervention: one store, one report (docs/using-labels.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import toys

from dnd.pipeline.execute import execute
from dnd.results.report.build import build_report
from dnd.results.run import RunFolder


class Deep(torch.nn.Module):
    """Three features, red, green and blue; a unit of red, and of blue where there is no red, and a unit of green."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Conv2d(3, 3, 1, bias=False)
        self.units = torch.nn.Conv2d(3, 2, 1, bias=False)
        with torch.no_grad():
            self.features.weight.copy_(torch.eye(3)[:, :, None, None])
            self.units.weight.copy_(torch.tensor([[1.0, 0, 0.3], [0, 1, 0]])[:, :, None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.units(self.features(x)).mean((2, 3))


def test_a_report_shows_what_an_ablated_channel_changes(tmp_path: Path) -> None:
    net, run = Deep().eval(), toys.toy_run(toys.make_photos(tmp_path / "photos"))

    def label(name: str) -> RunFolder:
        return execute(run, tmp_path / "runs" / name, registry=toys.registry(), live=(net, toys.preprocess))

    def ablate(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output.index_fill(1, torch.tensor([0]), 0)

    whole = label("whole")
    handle = net.features.register_forward_hook(ablate)
    toys.MOOD.calls.clear()
    ablated = label("ablated")
    handle.remove()
    again = label("again")
    assert [one.labels[0][0] for one in whole.labels] == ["red", "green"]
    assert [one.labels[0][0] for one in ablated.labels] == ["blue", "green"]
    assert again.labels == whole.labels
    assert sum(toys.MOOD.calls.get("captions", ())) == 4, "only images that no run has captioned: the blue exemplars"

    report = build_report([whole, ablated], tmp_path / "compared", progress=lambda n: None)
    text = (report.page.parent / "data.js").read_text()
    data = json.loads(text.removeprefix("dnd.index(").rstrip().removesuffix(");"))
    answers = [[one["labels"][0][0] for one in row["runs"]] for row in data["units"]]
    assert answers == [["red", "blue"], ["green", "green"]]
