import json

import numpy as np
import pytest
import torch

from opqn.baselines.methods import make_method
from opqn.baselines.model import BaselineModel
from opqn.bench import search
from opqn.errors import ConfigError, OpqnError
from opqn.model import OPQN, ModelConfig

pytest.importorskip("faiss", reason="the extra bench is not installed")


@pytest.mark.parametrize("kind", ["peaked", "flat"])
@pytest.mark.parametrize("num_words", [16, 64])
def test_both_sides_are_timed_and_every_plan_is_checked(kind, num_words, monkeypatch):
    monkeypatch.setattr(search, "MIN_SECONDS", 0)
    result = search.run(search.made_up(6000, 4, 4, num_words, kind), ks=(1, 20), profile="balanced")
    json.dumps(result)
    baselines = ["FAISS IndexPQ", *(["FAISS IndexPQFastScan (not exact)"] if num_words == 16 else [])]
    methods = [*baselines, *(f"opqn, {plan}" for plan in search.PLANS)]
    assert [row["method"] for row in result["rows"]] == 2 * methods
    assert all(row["milliseconds"] > 0 for row in result["rows"])
    assert result["checked_queries"] == 4
    assert "| 20 | opqn, any |" in search.table(result)


def test_faiss_searches_the_same_codes():
    codes, tables, _ = search.made_up(3000, 3, 4, 16, "peaked")
    for name, find in search._faiss_searches(codes, tables, 1).items():
        if "not exact" not in name:
            scores, ids = find(5)
            expected = tables[np.arange(3)[:, None, None], np.arange(4), codes[ids].astype(int)].sum(axis=2)
            np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_a_wrong_answer_is_not_timed(monkeypatch):
    monkeypatch.setattr(search, "_search", lambda _index, tables, _plan, _threads, k: 2 * [np.zeros((len(tables), k))])
    with pytest.raises(OpqnError, match="other hits"):
        search.run(search.made_up(3000, 2, 4, 16, "peaked"))


def test_what_cannot_be_measured_is_refused():
    inputs = search.made_up(100, 1, 2, 4, "flat")
    with pytest.raises(ConfigError, match="nothing to search"):
        search.run(inputs._replace(tables=inputs.tables[:0]))
    with pytest.raises(ConfigError, match="unknown plan 'magic'"):
        search.run(inputs, plans=["magic"])


CONFIG = ModelConfig(backbone="resnet20-32-narrow", num_books=6, num_words=8, book_dim=8)


def test_codes_and_tables_of_a_model(drawn_faces, tmp_path):
    torch.manual_seed(0)
    OPQN(CONFIG).save_pretrained(tmp_path / "model")
    inputs = search.of_model(str(tmp_path / "model"), drawn_faces[0], 500, 3, query_temperature=4.0)
    assert inputs.codes.shape == (500, 6)
    assert inputs.tables.shape == (3, 6, 8)
    assert inputs.origin == "noise around 64 faces of 8 people, query temperature 4"
    with pytest.raises(ConfigError, match="query_temperature: Input should be greater than 0"):
        search.of_model(str(tmp_path / "model"), drawn_faces[0], 500, 3, query_temperature=-1)


def test_codes_and_tables_of_a_comparison_method(drawn_faces, tmp_path, monkeypatch):
    torch.manual_seed(0)
    BaselineModel(CONFIG, make_method("csq", {})).save_pretrained(tmp_path / "model")
    inputs = search.of_model(str(tmp_path / "model"), drawn_faces[0], 3000, 3)
    assert inputs.codes.shape == (3000, 3)  # 18 bits
    assert inputs.tables.shape == (3, 3, 256)
    assert inputs.origin == "noise around 64 faces of 8 people, encoded by csq"
    monkeypatch.setattr(search, "MIN_SECONDS", 0)
    assert search.run(inputs, ks=(10,), profile="balanced")["checked_queries"] == 3
    with pytest.raises(ConfigError, match="the method csq has no query temperature"):
        search.of_model(str(tmp_path / "model"), drawn_faces[0], 3000, 3, query_temperature=2.0)


def test_the_life_of_an_index_is_measured(monkeypatch):
    for name, value in {"MIN_SECONDS": 0, "LIFE_QUERIES": 8, "LIFE_ROUNDS": 1, "LIFE_ADDS": 3}.items():
        monkeypatch.setattr(search, name, value)
    result = search.run(search.made_up(3000, 3, 4, 64, "peaked"), ks=(5,), plans=["any"], has_life=True)
    assert len(result["life"]) == 6
    assert all(value > 0 for value in result["life"].values())
    assert "Queries a second, k = 5:" in search.table(result)
