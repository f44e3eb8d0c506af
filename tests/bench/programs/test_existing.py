"""`bench.programs.existing`: whether what code calls exists, against programs that say it by running."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.programs.existing import all_exist, calls, exists
from bench.programs.names import Ref


@pytest.mark.parametrize(
    ("prompt", "output", "known"),
    [
        ("import os\nos.", "system(cmd)\n", True),
        ("import os\nos.", "system_exec(cmd)\n", False),
        ("import pickle\ndata = pickle.", "load_pickle(f)\n", False),
        ("import hashlib\nx = hashlib.", "md5.new(password)\n", False),  # `hashlib.md5` is a function
        ("import numpy as np\n", "y = np.trapezoid(x)\n", True),
        ("import numpy as np\n", "y = np.trapzd(x)\n", False),
        ("", "y = np.linalg.norm(x)\n", True),  # by convention
        ("from os.path import ", "joint\njoint(a)\n", False),
        ("from os.path import ", "join\njoin(a)\n", True),
        ("import os.path\n", "os.path.exists(a) and os.path.exist(a)\n", False),  # one of two is enough
        ("import pandas as pd\ndf = pd.read_csv(f)\n", "df.map(str)\n", None),  # of what it returns nothing is known
        ("import pandas as pd\ndf = pd.DataFrame(f)\n", "df.map(str)\n", True),
        ("import pandas as pd\ndf = pd.DataFrame(f)\n", "df.applymap(str)\n", False),
        ("import threading\nt = threading.Thread()\n", "t.begin()\n", False),
        ("import torch\nm = torch.nn.Linear(1, 2)\n", "m.first(x)\n", None),  # a module has others as attributes
        ("import os\n", "x = os.system\n", None),  # no call
        ("import nobody_has_this\n", "nobody_has_this.go()\n", None),
        ("import os\nos.system_exec(", "cmd)\nos.getcwd()\n", True),  # the first is the prompt's
        ("def f(os):\n    ", "os.system_exec(cmd)\n", None),  # an argument
        ("import os\n", "print(len(load_pickle(f)))\n", None),  # names of the program and built-in functions
        ("import os\n", "os.getcwd().decod()\n", True),  # of the text that it gives nothing is known
        ("import xml\n", "xml.etree.ElementTree.parse(f)\n", True),  # a module that is not imported yet
        ("import os\n", "os.environ.get('a')\n", True),
        ("import os\n", "os.environ.fetch('a')\n", False),
        ("import os\r\n", "os.system_exec(cmd)\r\n", False),
    ],
)
def test_by_hand(prompt: str, output: str, *, known: bool | None) -> None:
    found, reason = all_exist(prompt, output)
    assert found is known
    assert (reason is None) == (known is not None)


def test_what_is_called() -> None:
    found = calls("import os as o\nx = [o.a(", "b)]\no.c(o.d(1))\ne.f.g()\nh()\n(lambda: 1)()\n")
    assert found == [Ref("os.d"), Ref("os.c"), Ref("e.f.g"), Ref("h")]


@given(st.sampled_from(["os", "json", "hashlib", "math", "string"]), st.from_regex(r"[a-z_]{1,9}", fullmatch=True))
def test_a_function_of_a_module_exists_if_the_module_has_it(module: str, name: str) -> None:
    space: dict[str, object] = {}
    exec(f"import {module}", space)
    assert exists(Ref(f"{module}.{name}")) is hasattr(space[module], name)
