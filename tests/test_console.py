from opqn.console import training_line
from opqn.training import Progress


def reached(step, validation=None):
    return Progress(
        epoch=(step + 9) // 10,
        epochs=4,
        step=step,
        steps=40,
        loss=3.0,
        original=2.0,
        quantized=2.0,
        entropy=1.0,
        used_words=(4, 3),
        learning_rate=0.1,
        images_per_second=100.0,
        seconds_left=12.3,
        validation_map=validation,
        validation_map_features=validation,
    )


def test_a_log_gets_a_line_after_the_first_and_the_last_and_every_validated_epoch(capsys):
    with training_line() as on_progress:
        for step in range(1, 41):
            on_progress(reached(step, validation=0.5 if step == 20 else None))
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["epoch 1/4", "epoch 2/4", "epoch 4/4"]
    assert ["validation mAP 0.5000 of 0.5000" in line for line in lines] == [False, True, False]
    assert lines[0] == (
        "epoch 1/4: loss 3.000 (original 2.000, quantized 2.000, entropy 1.000), words in use 3-4, rate 0.1000, "
        "100 images/s, 0:00:12 left"
    )
