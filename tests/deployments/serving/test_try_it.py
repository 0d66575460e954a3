"""The page's forms for text, for writing and for sound, as a browser shows them.

    SCREENSHOTS=folder python -m pytest -n 0 tests/deployments/serving/test_try_it.py

keeps pictures of them, light and dark.
"""

import os
import re
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.browser import browser, watched
from tests.deployments.serving.letters import letters
from tests.deployments.serving.sequences import clip, opinion_version, spoken, tones_version


@pytest.fixture(scope="module")
def server(
    begun: Callable[..., Any], sealed: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """A server of `opinions` on texts, `tones` in sound, `letters`, and `slow-letters`."""
    root = tmp_path_factory.mktemp("try-it") / "repository"
    versions = [
        opinion_version(),
        tones_version(),
        sealed("letters", letters()),
        sealed("slow-letters", letters(slow=True)),
    ]
    with begun(root) as running:
        for version in versions:
            version.place(root, "1")
            assert running.load(version, "1").status == 200
            assert running.promote(version.line, "1").status == 200
        yield running


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser whose microphone hears `ab` again and again."""
    heard = tmp_path_factory.mktemp("microphone") / "ab.wav"
    heard.write_bytes(clip("ab"))
    options = (
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={heard}",
    )
    with browser(*options) as started:
        yield started


@pytest.fixture
def page(chromium: Any, server: Any) -> Iterator[Any]:
    """The page, opened with the key."""
    with watched(chromium, f"http://127.0.0.1:{server.port}/") as page:
        page.get_by_label("API key").fill(server.key)
        page.get_by_role("button", name="Open").click()
        page.get_by_role("heading", name="opinions").wait_for()
        yield page


def line(page: Any, name: str) -> tuple[Any, Any]:
    """The part of the page about a line, and its answer."""
    section = page.get_by_role("region", name=name, exact=True)
    return section, section.get_by_role("region", name=f"Answer of {name}")


def picture(page: Any, section: Any, name: str) -> None:
    if folder := os.environ.get("SCREENSHOTS"):
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            section.screenshot(path=Path(folder) / f"{name}-{scheme}.png")


def test_every_control_has_a_name(page: Any) -> None:
    page.get_by_label("Prompt").first.wait_for()
    nameless = """() => [...document.querySelectorAll("input,select,textarea,button,audio,img")]
        .filter(one => !(one.labels?.length || one.textContent.trim() || one.ariaLabel || one.alt))
        .map(one => one.outerHTML)"""
    assert page.evaluate(nameless) == []


def test_a_text_is_judged_and_its_words_are_marked(page: Any) -> None:
    section, answer = line(page, "opinions")
    section.get_by_label("Text").fill("a + b + c - b a")
    section.get_by_role("button", name="Predict").click()
    answer.get_by_text("opinion: for").wait_for()
    section.get_by_role("button", name="Explain").click()
    answer.get_by_text("a straight line below speaks for it").wait_for()
    assert answer.locator(".read").inner_text() == "a + b + c - b a"
    # The lines differ, not only the colours.
    style = "node => getComputedStyle(node).textDecorationStyle"
    plus, minus = (answer.locator(".read span", has_text=sign).first for sign in "+-")
    assert (plus.evaluate(style), minus.evaluate(style)) == ("solid", "wavy")
    assert answer.get_by_role("row", name=re.compile(r"^\+ \+0")).count() == 2
    assert answer.get_by_role("row", name=re.compile("^- \u22120")).count() == 1
    picture(page, section, "text")


def test_a_text_appears_while_it_is_written(page: Any) -> None:
    section, answer = line(page, "slow-letters")
    section.get_by_label("Prompt").fill("ab")
    section.get_by_label("characters").fill("4000")
    section.get_by_label("temperature").fill("0")
    assert section.get_by_role("button", name="Explain").count() == 0
    section.get_by_role("button", name="Write").press("Enter")
    written = answer.locator(".written")
    page.wait_for_function("node => node.innerText.length > 20", arg=written.element_handle())
    assert answer.get_attribute("aria-busy") == "true"
    section.get_by_role("button", name="Stop").click()
    answer.get_by_text("Stopped.").wait_for()
    text = written.inner_text()
    assert text.startswith("abcdabcd")
    assert len(text) < 4000
    assert answer.get_attribute("aria-busy") is None
    assert section.get_by_role("button", name="Stop").count() == 0


def test_a_whole_text_says_how_it_ended(page: Any) -> None:
    section, answer = line(page, "letters")
    section.get_by_label("Prompt").fill("ab")
    section.get_by_label("temperature").fill("0")
    section.get_by_label("stop before").fill("abc")
    section.get_by_role("button", name="Write").click()
    answer.get_by_text("5 tokens, ended by the stop.").wait_for()
    assert answer.locator(".written").inner_text() == "abcd"
    section.get_by_label("stop before").fill("")
    section.get_by_label("temperature").fill("1.5")
    section.get_by_role("button", name="Write").click()
    answer.get_by_text("200 tokens, ended by their number.").wait_for()
    assert len(answer.locator(".written").inner_text()) == 202
    picture(page, section, "writing")
    section.get_by_label("top_p").fill("0")
    section.get_by_role("button", name="Write").click()
    answer.get_by_text("top_p").wait_for()  # why it is refused


def test_a_clip_is_transcribed_and_explained(page: Any, tmp_path: Path) -> None:
    section, answer = line(page, "tones")
    file = tmp_path / "aba.wav"
    file.write_bytes(clip("aba"))
    section.get_by_label("Drop or choose a clip").set_input_files(file)
    section.get_by_text("aba.wav, 2.1 s.").wait_for()
    section.get_by_role("button", name="Predict").click()
    answer.get_by_text("transcript: aba").wait_for()
    section.get_by_role("button", name="Explain").click()
    drawn = answer.get_by_role("img", name=re.compile("Spectrogram"))
    drawn.wait_for()
    assert drawn.evaluate("node => node.naturalHeight") == 4
    assert answer.get_by_role("row", name=re.compile(r"^0\.[34] s 0\.[45] s \+")).count() >= 1
    picture(page, section, "sound")


def test_a_clip_of_another_form_is_converted_by_the_browser(page: Any, tmp_path: Path) -> None:
    section, answer = line(page, "tones")
    file = tmp_path / "stereo.wav"
    with wave.open(str(file), "wb") as written:
        written.setnchannels(2)
        written.setsampwidth(2)
        written.setframerate(16_000)
        written.writeframes(np.repeat(spoken("b"), 4).astype("<i2").tobytes())
    section.get_by_label("Drop or choose a clip").set_input_files(file)
    section.get_by_text("made a WAV file of 8,000 samples a second here").wait_for()
    section.get_by_role("button", name="Predict").click()
    answer.get_by_text("transcript: b").wait_for()
    file = tmp_path / "none.wav"
    file.write_bytes(b"RIFF")
    section.get_by_label("Drop or choose a clip").set_input_files(file)
    section.get_by_text("none.wav is no sound this browser can read").wait_for()
    section.get_by_role("button", name="Predict").click()
    answer.get_by_text("Choose a clip first").wait_for()


def test_what_the_microphone_hears_is_transcribed(page: Any) -> None:
    section, answer = line(page, "tones")
    record = section.get_by_role("button", name="Record", exact=True)
    record.click()
    stop = section.get_by_role("button", name="Stop recording")
    stop.wait_for()
    page.wait_for_timeout(2500)  # longer than a letter of each kind is apart
    stop.click()
    section.get_by_text(re.compile(r"Recording, \d\.\d s, made a WAV file")).wait_for()
    section.get_by_role("button", name="Predict").click()
    answer.get_by_text("transcript: ").wait_for()
    assert re.search("ab|ba", answer.get_by_text("transcript: ").inner_text())
