"""The test that the documentation shows is one: it passes, with the fixture that comes with the package."""

import re
from pathlib import Path

pytest_plugins = ["pytester"]

PAGE = Path(__file__).parents[3] / "docs" / "testing.md"
_FILE = re.compile(r'^```python title="(?P<name>[^"]+)"\n(?P<text>.*?)^```$', re.MULTILINE | re.DOTALL)


def test_the_whole_test_of_the_page_passes(pytester):
    for file in _FILE.finditer(PAGE.read_text()):
        (pytester.path / file["name"]).write_text(file["text"])
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
    pytester.makeconftest("from featurelib.testing.plugin import thyme")
    pytester.runpytest_subprocess("-p", "no:randomly").assert_outcomes(passed=7)
