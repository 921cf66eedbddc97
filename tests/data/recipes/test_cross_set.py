"""A model of one set is tested on another without the people it knows, however their names are written."""

import pytest
from small_sets import load, people, small, write_files

from opqn.data.recipes import comparable_name, cross_set_split, read_names
from opqn.data.splits import Split
from opqn.errors import CorruptFileError, DataError

SEEN = Split(
    "s", "seen", 3, ("Ann_Lee/1.png", "Bob/1.png"), ("Ann_Lee/1.png", "Bob/1.png"), ("Ann_Lee/2.png", "Bob/2.png")
)


def test_names_are_compared_without_accents_case_and_signs():
    assert comparable_name("Penélope Cruz") == comparable_name("penelope_cruz") == comparable_name("Penelope-CRUZ ")
    assert comparable_name("Ann Lee") != comparable_name("Anne Lee")
    assert comparable_name("章子怡") == "章子怡"


def test_known_people_are_left_out():
    split = cross_set_split(SEEN, ["ann lee"])
    assert (split.protocol, split.train, split.seed) == ("unseen", (), 3)
    assert (split.gallery, split.query) == (("Bob/1.png",), ("Bob/2.png",))
    assert cross_set_split(SEEN).gallery == SEEN.gallery


def test_nobody_left_is_an_error():
    with pytest.raises(DataError, match="everybody in s is known"):
        cross_set_split(SEEN, ["Ann Lee", "Bob"])


def test_names_are_read_from_both_kinds_of_files(tmp_path):
    plain, table = tmp_path / "names.txt", tmp_path / "people.csv"
    plain.write_text("Ann Lee\n\n  Bob \n")
    assert read_names(plain) == {"Ann Lee", "Bob"}
    table.write_text('class,name,role\nn1,"Lee, Ann",train\nn2,Bob,held out\nn3,,train\n')
    assert read_names(table) == {"Lee, Ann"}
    table.write_text("\ufeffClass_ID, Name\nn1, Ann\n", encoding="utf-8")
    assert read_names(table) == {"Ann"}


def test_files_without_names_are_refused(tmp_path):
    file = tmp_path / "names.txt"
    with pytest.raises(DataError, match="cannot read the names"):
        read_names(file)
    for data in (b"", b"\n\n", b"class,name\n", b" . \n"):
        file.write_bytes(data)
        with pytest.raises(DataError, match="has no names"):
            read_names(file)
    file.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(CorruptFileError, match="not UTF-8"):
        read_names(file)


def test_a_recipe_leaves_known_people_out_of_unseen_only(tmp_path):
    source = write_files(tmp_path / "in", people(["Ann_Lee", "Bob", "Cid"], 8, "{person}/{i}.png"))
    prepared = small("facescrub").prepare(source, tmp_path / "out", known_people=frozenset(["Ann Lee", "Someone Else"]))
    splits = load(prepared)
    assert {path.split("/")[0] for path in splits["seen"].train} == {"Ann_Lee", "Bob", "Cid"}
    assert {path.split("/")[0] for path in splits["unseen"].gallery} == {"Bob", "Cid"}
    assert "Names left out, because that model knows them: 2." in (tmp_path / "out" / "SOURCE.md").read_text()
