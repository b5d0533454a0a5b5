"""The picture of the kernels under the device's roof, from a report's JSON."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.gpu_report import roofline
from benchmarks.gpu_report.__main__ import write_report
from benchmarks.gpu_report.record import PartRecord
from benchmarks.gpu_report.roofline import Roof

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    limits = PartRecord(part="limits", path=tmp_path / "limits.json", is_tiny=True, device="A <device>")
    limits.figure("copy", 4000.0, "GB/s")
    limits.figure("bf16 product", 800.0, "TFLOP/s")
    kernels = PartRecord(part="kernels", path=tmp_path / "kernels.json", is_tiny=True)
    kernels.figure("decode", 90.0, "% of copy", roof=(4.0, 14.4))
    kernels.figure("prefill", 400.0, "TFLOP/s", roof=(3000.0, 400.0))
    kernels.figure("sample", 1.0, "ms")
    write_report(tmp_path)
    return tmp_path


def test_a_kernel_stands_under_the_roof_at_its_share_of_it(folder: Path) -> None:
    assert roofline.main([str(folder)]) == 0

    picture = ElementTree.parse(folder / "roofline.svg")
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    assert "decode: 90 %" in texts
    assert "prefill: 50 %" in texts
    assert not any("sample" in (text or "") for text in texts)
    (decode, prefill) = ((float(c.attrib["cx"]), float(c.attrib["cy"])) for c in picture.iter(f"{SVG}circle"))
    assert decode[0] < prefill[0]
    assert decode[1] > prefill[1]
    (line,) = picture.iter(f"{SVG}polyline")
    corners = [tuple(map(float, corner.split(","))) for corner in line.attrib["points"].split()]
    # The roof lies above the second and as far above the first as its share says.
    assert corners[1][1] == corners[2][1] < prefill[1]


def test_the_roof_is_the_lower_of_both_limits() -> None:
    roof = Roof(device="", gigabytes_per_s=4000.0, tflop_per_s=800.0)

    assert [roof.at(intensity) for intensity in (1.0, 200.0, 1e4)] == [4.0, 800.0, 800.0]


def test_a_report_without_the_parts_is_told_what_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.json").write_text(json.dumps({"parts": []}))

    assert roofline.main([str(tmp_path)]) == 1

    assert "run --only limits,kernels first" in capsys.readouterr().err
    assert not (tmp_path / "roofline.svg").exists()
