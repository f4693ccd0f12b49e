"""The main job on a tiny Llama: every output, the second run, the child in an environment without this package."""

import json
import subprocess
import sys

import pytest
from conftest import Run  # type: ignore[import-not-found]

pytestmark = pytest.mark.slow
