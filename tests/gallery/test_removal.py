import numpy as np
import pytest
from stand_ins import Averages, picture

from opqn.errors import OpqnError
from opqn.gallery import Gallery
from opqn.gallery.catalog import Catalog
from opqn.index import CodeIndex


def all_bytes(folder):
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


class Hashes(Averages):
    """Codes long and odd enough to be searched for in files."""

    num_books, num_words = 24, 256

    def _code(self, image):
        return np.random.default_rng(np.asarray(image).ravel().tolist()).integers(0, 256, 24, dtype=np.uint8)

    def lookup_tables(self, images):
        return np.zeros((len(images), 24, 256), np.float32)


@pytest.fixture
def secrets(tmp_path):
    """A gallery, and for each of 300 people what must not be left of them."""
    rng = np.random.default_rng(0)
    photos = tmp_path / "photos"
    traces = {}
    for number in rng.permutation(300).tolist():  # names come in no order, so that pages of the catalog split
        name = "Name" + rng.bytes(8).hex()
        (photos / name).mkdir(parents=True)
        path = photos / name / f"{rng.bytes(8).hex()}.png"
        picture(number).save(path)
        traces[name] = [name.encode(), path.name.encode()]
    with Gallery.create(tmp_path / "faces.gallery", Hashes()) as gallery:
        gallery.add_folder(photos)
        for person, code, crop in gallery._catalog.rows(
            "SELECT name, code, crop FROM faces JOIN people ON people.id = faces.person"
        ):
            traces[person] += [code, crop[-200:]]
        yield gallery, traces


def test_nothing_of_who_was_removed_is_left_in_any_file(secrets):
    gallery, traces = secrets
    gallery._live.save()
    everything = all_bytes(gallery.folder)
    assert all(trace in everything for person in traces for trace in traces[person])
    people = sorted(traces)
    rng = np.random.default_rng(1)
    gone = []
    for _ in range(6):  # again and again, as only a rewritten file has no copies of rows that moved within it
        now = rng.choice([name for name in people if name not in gone], 20, replace=False).tolist()
        for name in now[:2]:
            gallery.remove(person=name)
        faces = gallery._catalog.rows_in(
            "SELECT faces.id FROM faces JOIN people ON people.id = person WHERE name IN", now
        )
        gallery.remove([face for (face,) in faces])
        gone += now
        left = all_bytes(gallery.folder)
        assert not [name for name in gone if any(trace in left for trace in traces[name])]
    kept = [name for name in people if name not in gone]
    assert all(trace in left for name in kept for trace in traces[name])
    assert gallery.verify().problems == ()


def test_a_reader_of_long_standing_sees_the_removal_and_keeps_no_file_from_being_emptied(secrets):
    gallery, traces = secrets
    with Gallery.open(gallery.folder, Hashes()) as reader:
        assert len(reader.search_tables(np.zeros((1, 24, 256), np.float32), k=400)[0].hits) == 300
        name = sorted(traces)[7]
        gallery.remove(person=name)
        found = reader.search_tables(np.zeros((1, 24, 256), np.float32), k=400)[0].hits
        assert len(found) == 299
        assert name not in {hit.face.person.name for hit in found}
        left = all_bytes(gallery.folder)
        assert not any(trace in left for trace in traces[name])


def test_a_name_in_the_path_of_a_picture_that_shows_others_goes_too(secrets):
    gallery, traces = secrets
    name, other = sorted(traces)[:2]
    ((photo,),) = gallery._catalog.rows(
        "SELECT photo FROM faces JOIN people ON people.id = person WHERE name = ?", (name,)
    )
    with gallery._catalog.transaction():  # the other person is in the picture as well
        gallery._catalog.run(
            "UPDATE faces SET photo = ? WHERE person = (SELECT id FROM people WHERE name = ?)", (photo, other)
        )
    gallery.remove(person=name)
    assert name.encode() not in all_bytes(gallery.folder)
    assert gallery.add_folder(gallery.sources()[0][0]).num_removed_before == 1
    assert name.encode() not in all_bytes(gallery.folder)
    assert len(gallery) == 299


@pytest.mark.parametrize("broken", ["index", "catalog"])
def test_a_removal_that_was_cut_short_is_finished_later(secrets, monkeypatch, broken):
    gallery, traces = secrets
    gallery._live.save()
    name = sorted(traces)[3]

    def fails(*_arguments, **_settings):
        raise OpqnError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(CodeIndex if broken == "index" else Catalog, "save" if broken == "index" else "scrub", fails)
        with pytest.raises(OpqnError, match="disk is full"):
            gallery.remove(person=name)
    assert name not in {person.name for person, _ in gallery.people()}  # nobody finds it any more
    assert len(gallery.search_tables(np.zeros((1, 24, 256), np.float32), k=400)[0].hits) == 299
    with Gallery.open(gallery.folder, Hashes()) as other:
        report = other.verify()
        assert report.problems == ()
        assert any("may be left" in line for line in report.pending)
        if broken == "index":
            report = other.verify(repair=True)
            assert report.problems == report.pending == ()
            assert any("may be left" in line for line in report.repaired)
        else:
            other.add(picture(1000))
        left = all_bytes(gallery.folder)
        assert not any(trace in left for trace in traces[name])
        assert other.verify().problems == ()


def test_a_reader_in_the_middle_of_reading_only_puts_the_emptying_off(secrets):
    gallery, traces = secrets
    name = sorted(traces)[5]
    gallery._catalog.rows("PRAGMA busy_timeout = 50")
    reader = Catalog(gallery.folder / "catalog.sqlite")
    reader.rows("BEGIN")
    reader.rows("SELECT count(*) FROM faces")
    gallery.remove(person=name)
    assert gallery._catalog.meta("scrub")
    reader.rows("ROLLBACK")
    reader.close()
    gallery.assign([1], "someone")
    assert not gallery._catalog.meta("scrub")
    left = all_bytes(gallery.folder)
    assert not any(trace in left for trace in traces[name])
