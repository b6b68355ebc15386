"""The examples of the rules of Keras's own: the bad one is found under its code, the mended one is not."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from castiron.diagnostics.rules.flow_keras import RULES
from castiron.keras.audit import audit


@pytest.mark.parametrize("of", RULES, ids=lambda r: r.code)
def test_examples(of) -> None:
    for text, found in ((of.bad, True), (of.good, False)):
        scope = {"keras": keras, "L": keras.layers, "x": np.ones((4, 8), "float32")}
        floatx = keras.config.floatx()
        try:
            exec(text, scope)
            report = audit(scope["model"], scope["x"], optimizer=scope.get("optimizer"), as_is=True)
        finally:
            keras.config.set_floatx(floatx)
        codes = [f.code for f in report.findings]
        assert (of.code in codes) is found, [str(f) for f in report.findings]
