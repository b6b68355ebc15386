"""The report of an audit: its wording, its forms, what is waived; and that nothing is left behind."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import castiron
from castiron import AuditError, AuditReport, PrecisionPolicy, assert_precision, audit
from castiron.diagnostics import RunError
from castiron.diagnostics.html import report_page
from castiron.diagnostics.sarif import as_sarif
from castiron.policy import resolve
from castiron.torch.audit.api import _switches
from castiron.torch.audit.tracer import Step, trace
from castiron.torch.modules import describe
from castiron.training.audit import OpRecord, Share, TensorFormat, tally
from castiron.training.auditing import verify

torch.set_num_threads(1)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(x) * torch.from_numpy(np.ones(4))


LINE = Scaled.forward.__code__.co_firstlineno + 1


class Waived(Scaled):
    def forward(self, x):
        return self.head(x) * torch.from_numpy(np.ones(4))  # castiron: ignore[F301]


class AllWaived(Scaled):
    def forward(self, x):
        return self.head(x) * torch.from_numpy(np.ones(4))  # castiron: ignore


def planned(policy):
    model = nn.Linear(8, 4)
    return resolve(PrecisionPolicy.preset(policy), describe(model))[0]


def x():
    return torch.randn(16, 8)


def loss(outputs, batch):
    return outputs.float().mean()


@pytest.fixture
def report():
    return audit(Scaled(), x(), "float32", loss=loss)


def test_what_a_finding_says(report):
    (found,) = report.findings
    assert str(found) == (
        "F301 mul meets float32 with float64 and computes in float64, because of a tensor made outside of "
        "the "
        "model (from NumPy, or kept in a variable). Expected operands in float32. Received float32[16,4], "
        f"float64[4] at {__file__}:{LINE}, the model itself, mul (forward). Make the operand in the format "
        f"of the "
        "other: x.new_tensor(...), parameter.to(x.dtype), or torch.from_numpy(array).to(x.dtype)."
    )
    assert found.severity == "error"


def test_what_the_report_says(report):
    assert not report.ok
    assert report.headline().startswith("failed: ")
    assert "1 error; FLOPs" in report.headline()
    text = report.as_text(phases=True, all=True)
    assert "error F301  An operation got floating-point tensors of different formats" in text
    assert "of FLOPs" in text
    assert "backward:" in text
    with pytest.raises(AuditError, match="F301 mul meets float32 with float64"):
        report.check()


def test_messages_of_other_checks():
    def said(forward, policy="float32", **parts):
        model = nn.Module()
        model.head = nn.Linear(8, 4)
        for name, part in parts.items():
            setattr(model, name, part)
        model.forward = lambda x: forward(model, x)
        report = audit(model, x(), policy, loss=loss)
        return [f"{f.code} {f.message}" for f in report.findings]

    assert said(lambda m, x: m.head(x.double())) == [
        "F302 double makes a float64 tensor",
        "F306 linear cannot take these operands: on real tensors it raises; float64 comes from a cast by "
        f".double() at {__file__}:{said.__code__.co_firstlineno + 9}",
    ]
    assert said(lambda m, x: m.lstm(x[:, None].half())[0], lstm=nn.LSTM(8, 4))[1] == (
        "F306 a recurrent layer of float32 weights got float16 input"
    )
    assert said(lambda m, x: m.head(x).softmax(-1, dtype=torch.bfloat16), "bf16-mixed") == [
        "F308 softmax computes in bfloat16"
    ]
    assert said(lambda m, x: m.head(x.bfloat16().float())) == [
        "F309 a tensor goes from float32 to bfloat16 and back, with nothing computed between: every value is "
        "rounded"
    ]


def test_findings_that_the_config_treats_otherwise():
    def of(model, **enforce):
        policy = PrecisionPolicy.preset("float32", enforce=enforce)
        found = audit(model, x(), policy, loss=loss)
        return [f.code for f in found.findings], [f.code for f in found.waived]

    assert of(Scaled()) == (["F301"], [])
    assert of(Scaled(), ignore=["F301"]) == ([], ["F301"])
    assert of(Scaled(), ignore=["F3"]) == ([], ["F301"])
    assert of(Scaled(), select=["F308"]) == ([], [])
    assert of(Scaled(), per_module={"head": ["F301"]}) == (["F301"], [])
    assert of(nn.Sequential(Scaled()), per_module={"0": ["F301"]}) == ([], ["F301"])
    assert of(Waived()) == ([], ["F301"])
    assert of(AllWaived()) == ([], ["F301"])
    warned = audit(Scaled(), x(), PrecisionPolicy.preset("float32", enforce={"severity": {"F3": "warning"}}))
    assert warned.ok
    assert [f.severity for f in warned.findings if f.code == "F301"] == ["warning"]


def test_severity_of_the_longest_key_counts():
    policy = PrecisionPolicy.preset("float32", enforce={"severity": {"F3": "info", "F301": "warning"}})
    assert [f.severity for f in audit(Scaled(), x(), policy, loss=loss).findings] == ["warning"]


def test_new_settings_of_the_section_keep_old_hashes():
    policy = PrecisionPolicy.preset("float32")
    assert policy.hash() != policy.replace(enforce={"every": 7}).hash()
    assert policy.hash() == policy.replace(enforce={"every": 200}).hash()


def test_a_certificate_is_read_again(report, tmp_path):
    report = report.model_copy(update={"waived": report.findings, "steps": (10, 210)})
    again = AuditReport.from_json(report.to_json())
    assert again == report
    (tmp_path / "audit.json").write_text(report.to_json())
    assert not verify(tmp_path).ok
    assert verify(tmp_path / "audit.json").findings == report.findings


def test_a_certificate_cannot_vouch_for_itself(report, tmp_path):
    record = json.loads(report.to_json())
    record["ok"] = True
    (tmp_path / "audit.json").write_text(json.dumps(record))
    assert not verify(tmp_path).ok


def test_certificates_that_are_none(tmp_path):
    with pytest.raises(RunError, match=r"F329 There is no certificate to verify: No such file"):
        verify(tmp_path)
    (tmp_path / "audit.json").write_text("{}")
    with pytest.raises(RunError, match="F329 The certificate of the audit cannot be read"):
        verify(tmp_path)
    (tmp_path / "audit.json").write_text("no JSON")
    with pytest.raises(RunError, match="F329 The certificate of the audit cannot be read: Expecting value"):
        verify(tmp_path)


def test_sarif_is_valid(report, pytestconfig):
    file = pytestconfig.rootpath / "tests" / "diagnostics" / "sarif-2.1.0.json"
    schema = json.loads(file.read_text())
    log = json.loads(
        as_sarif(report.findings, waived=report.findings, root=pytestconfig.rootpath, version="1.2.3")
    )
    jsonschema.Draft4Validator(schema).validate(log)
    (run,) = log["runs"]
    result, suppressed = run["results"]
    assert result["ruleId"] == "F301"
    assert result["level"] == "error"
    where = result["locations"][0]["physicalLocation"]
    assert where["artifactLocation"] == {"uri": "tests/torch/audit/test_report.py", "uriBaseId": "SRCROOT"}
    assert where["region"] == {"startLine": LINE}
    assert suppressed["suppressions"] == [{"kind": "inSource"}]
    assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == "F301"


def test_sarif_of_findings_without_a_file_names_the_config(report):
    from dataclasses import replace

    from castiron.diagnostics import Place

    bare = replace(report.findings[0], place=Place(module="head"))
    log = json.loads(as_sarif([bare], default_file="configs/a.yaml"))
    (location,) = log["runs"][0]["results"][0]["locations"]
    assert location["physicalLocation"]["artifactLocation"]["uri"] == "configs/a.yaml"
    assert location["logicalLocations"] == [{"fullyQualifiedName": "head", "kind": "member"}]


def test_html(report):
    page = report_page("Audit of <x>", report.headline(), report.findings, report.share())
    assert "Audit of &lt;x&gt;" in page
    assert "F301" in page
    assert "float32" in report._repr_html_()


def test_assert_precision_in_a_test():
    assert assert_precision(nn.Linear(8, 4), x(), "bf16-mixed").ok
    with pytest.raises(AuditError):
        assert_precision(Scaled(), x())


def test_shares():
    def op(format, flops):
        kind = TensorFormat(dtype="float32", shape=(2,))
        return OpRecord(op="mm", phase="forward", module="", source=None, inputs=(kind,), outputs=(kind,),
                        format=format, flops=flops, bytes=8)  # fmt: skip

    formats = tally([op("float32", 1), op("bfloat16", 3), op(None, 0)])
    assert formats["forward"]["integer"] == Share(operations=1, flops=0, bytes=8)
    made = AuditReport(policy="", policy_hash="", device="cpu", level="warn", traced="fake", formats=formats)
    assert made.share() == {"bfloat16": 0.75, "float32": 0.25}


def test_flops_are_those_of_the_products():
    found = audit(nn.Linear(8, 4, bias=False), x(), "float32", loss=lambda o, b: o.sum())
    assert found.formats["forward"]["float32"].flops == 2 * 16 * 8 * 4


def test_the_model_is_left_as_it_is():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 4)).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters())
    batch = x()
    random = torch.get_rng_state()
    audit(model, batch, "bf16-true", loss=loss, optimizer=optimizer)
    assert torch.equal(torch.get_rng_state(), random)
    for k, v in model.state_dict().items():
        assert torch.equal(v, before[k])
        assert v.dtype is before[k].dtype
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert not optimizer.state
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_model_that_needs_numbers_is_traced_by_a_real_step():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            return self.head(x) if x.sum() > -1e9 else self.head(-x).double()

    model = Branches()
    report = audit(model, x(), "float32", loss=loss)
    assert report.traced == "real"
    assert [f.code for f in report.findings] == ["F326"]
    assert all(p.grad is None for p in model.parameters())


def test_a_model_on_meta_is_audited():
    with torch.device("meta"):
        model = Scaled()
    report = audit(model, torch.empty(16, 8, device="meta"), "bf16-mixed", loss=loss)
    assert [f.code for f in report.findings] == ["F301"]


def test_strict_leaves_nothing_behind():
    """A step after the audit is the step that it was: no hook, no mode, no wrapper stays."""
    from torch.nn.modules import module as hooks
    from torch.overrides import _get_current_function_mode_stack
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    def state():
        return (
            len(hooks._global_forward_hooks),
            len(hooks._global_forward_pre_hooks),
            len(hooks._global_backward_hooks),
            _get_current_function_mode_stack(),
            _get_current_dispatch_mode_stack(),
            torch.is_autocast_enabled("cpu"),
            torch.nn.Linear.forward,
            [(k, len(getattr(m, k))) for m in model.modules() for k in vars(m) if k.endswith("_hooks")],
        )

    model = nn.Sequential(nn.Linear(8, 4), nn.LayerNorm(4))
    before = state()
    audit(model, x(), "bf16-mixed", loss=loss, optimizer=torch.optim.AdamW(model.parameters())).check()
    assert state() == before
    assert all(p.grad is None for p in model.parameters())


def test_a_model_that_calls_itself_through_a_function_keeps_its_gradients():
    model = nn.Sequential(nn.Linear(8, 4))
    inner = model[0]
    model.forward = lambda x: inner(x)  # of the model itself: a copy does not know it
    audit(model, x(), loss=loss)
    assert inner.weight.grad is None


def test_a_small_model_is_confirmed_by_a_real_step():
    report = audit(nn.Sequential(nn.Linear(8, 4)), x(), loss=loss)
    assert (report.traced, report.confirmed) == ("fake", True)
    assert AuditReport.from_json(report.to_json()).confirmed
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 4))
        batch = torch.randn(16, 8)
    assert not audit(model, batch, loss=loss).confirmed


def test_an_error_that_only_real_kernels_raise():
    """A kernel that fake tensors know and the CPU does not."""

    class Inverse(nn.Module):
        def forward(self, x):
            return torch.cholesky_inverse(x.half())

    report = audit(Inverse(), torch.eye(4))
    (found,) = [f for f in report.errors if f.code == "F307"]
    assert found.place.line == Inverse.forward.__code__.co_firstlineno + 1


def test_the_switch_for_tf32():
    """The switches are there without a GPU too; an audit for one looks at them."""
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        switches = torch._C._get_fp32_precision_getter("cuda", "matmul")
        traced = trace(Step(nn.Linear(8, 4), x()), planned("float32"), device=torch.device("cpu"))[0]

        def said(policy, device="cuda", in_charge=True):
            found = _switches(
                PrecisionPolicy.preset(policy), torch.device(device), traced, in_charge=in_charge
            )
            return [(f.message, f.expected, f.received, f.severity) for f in found if f.code == "F322"]

        # torch's switch for convolutions is on from the start, and nothing here convolves
        message = "the switch cuda.matmul is on for tf32"
        assert said("float32") == [(message, "ieee", switches, "error")]
        assert said("float32", in_charge=False) == [(message, "ieee", switches, "warning")]
        assert said("tf32") == []
        assert said("float32", "cpu") == []
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_what_does_not_run_is_told():
    report = audit(nn.Linear(8, 4), torch.randn(16, 3), "float32")
    assert [f.code for f in report.errors] == ["F327"]
    assert "forward pass stopped with RuntimeError" in report.errors[0].message
    assert "size" in report.errors[0].message or "shape" in report.errors[0].message


def test_a_lightning_module_says_itself_what_a_step_is():
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.body = Scaled()

        def training_step(self, batch, batch_idx):
            features, targets = batch
            loss = F.mse_loss(self.body(features).float(), targets)
            self.log("loss", loss)
            return loss

    report = audit(Module(), (x(), torch.zeros(16, 4)), "float32")
    assert [f.code for f in report.findings] == ["F301"]
    assert report.findings[0].place.module == "body"


def test_the_model_of_no_framework():
    with pytest.raises(TypeError, match=r"Expected a torch.nn.Module or a keras.Model. Received int."):
        castiron.audit(3, None)


def test_as_is_finds_what_the_plan_would_have_mended():
    model = nn.Linear(8, 4).double()
    report = audit(model, x().double(), "float32", loss=lambda o, b: o.sum(), as_is=True)
    assert {"F302", "F310", "F312"} <= {f.code for f in report.findings}


def test_batches_by_name():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = nn.Embedding(10, 8), nn.Linear(8, 2)

        def forward(self, ids, scale=None):
            return self.head(self.words(ids).mean(1)) * scale

    batch = {"ids": torch.zeros(4, 3, dtype=torch.int64), "scale": torch.ones(4, 1)}
    assert audit(Named(), batch, "bf16-mixed", loss=loss).ok
