"""The report of the demo, from made-up results of a model that has learnt nothing."""

from __future__ import annotations

import json

import numpy as np
from html_page import check_page
from tiny_models import random_picture, released_model

from chameleon_jax.config import TrainConfig, find_configs, read_config
from chameleon_jax.demo.digits.evaluate import Answers, Drawings, Evaluation
from chameleon_jax.demo.digits.report import write_report
from chameleon_jax.tokens.image import to_pixels

METRICS = (
    "caption_accuracy", "drawing_accuracy", "question_accuracy", "sum_accuracy", "judge_accuracy_on_real_digits",
    "copied_drawings", "real_pictures_as_near", "reconstruction_psnr_db", "codebook_used", "text_bits_per_byte",
    "xz_bits_per_byte", "code_bits_per_byte", "xz_code_bits_per_byte", "total_minutes", "cpu_minutes",
    "peak_memory_gib",
)  # fmt: skip


def test_every_picture_says_what_it_shows(tmp_path):
    pictures = [random_picture(seed, (8, 8)) for seed in range(4)]
    answers = Answers([[picture] for picture in pictures], [[7], [1], [2], [3]], ["a seven", "<two>", "two", "3"],
                      [True, False, True, True])  # fmt: skip
    sums = Answers([pictures[:2], pictures[2:]], [[7, 1], [2, 3]], [" eight", " five"], [True, True])
    drawings = Drawings(pictures, [0, 0, 9, 9], [0, 6, 9, 9])
    continuations = [(["Three ", pictures[0]], [" four ", pictures[1]]), (["x" * 101], ["y & z"])]
    (tmp_path / "image_tokenizer").mkdir()
    (tmp_path / "image_tokenizer" / "metrics.jsonl").write_text('{"step": 1, "psnr_db": 9.0, "perplexity": 3.0}\n')
    (tmp_path / "metrics.jsonl").write_text(
        json.dumps({"step": 2, "text_loss": 2.0, "held_out": {"python_reference": {"text_loss": 3.0}}}) + "\n"
    )
    train = read_config(TrainConfig, find_configs() / "demo" / "train.yaml", {"output": str(tmp_path)})
    pixels = np.stack([to_pixels(picture, 8) for picture in pictures])
    stages = {"prepare data": {"finished": True, "continued": True, "seconds": 3.0, "cpu_seconds": 2.0}}
    write_report(
        tmp_path / "report.html", released_model(), train,
        Evaluation({}, answers, answers, sums, drawings, continuations, pixels, 1437, 3.0),
        dict.fromkeys(METRICS, 0.5), stages,
    )  # fmt: skip

    page = check_page((tmp_path / "report.html").read_text(encoding="utf-8"))
    alts = [image["alt"] for image in page.all("img")]
    assert len(alts) == (2 + 4 + 4 + 4 + 2 * 2) + 2 + 2 * 4
    assert alts.count("handwritten seven") == 3  # captions, questions, sums
    assert {"drawing of zero, judged zero", "drawing of zero, judged six", "picture, written"} <= set(alts)
    assert len(page.all("svg")) == 3 * 2
    texts = [text for _, text in page.texts]
    assert texts.count("✗ <two>") == 2
    assert {"4 test pictures", "2 pairs of test pictures"} <= set(texts)
