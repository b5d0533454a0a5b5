"""What cannot be measured is refused before anything starts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks import kv_waste, soak, throughput


@pytest.mark.parametrize(
    ("main", "argv", "words"),
    [
        (soak.main, ["--clients", "0"], "'0' must be a whole number"),
        (soak.main, ["--minutes", "nan"], "'nan' must be a number above 0"),
        (soak.main, ["--think-ms", "-1"], "'-1' must be a number above 0"),
        (kv_waste.main, ["--block-sizes", "16,x"], "'x' must be a whole number"),
        (throughput.main, ["MODEL", "-c", "1,,4"], "'' must be a whole number"),
        (throughput.main, ["MODEL", "--rounds", "0"], "'0' must be a whole number"),
    ],
)
def test_a_wrong_value_is_told(
    main: Callable[[list[str]], int], argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)

    assert ended.value.code == 2
    assert words in capsys.readouterr().err
