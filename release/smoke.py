"""What release/wheels.py runs in each environment: steps of AD-DROP and of RelDrop. Prints the versions as JSON."""

import json
import platform

import torch
import transformers

import attrdrop
from attrdrop.models import resnet10

SIZE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=100)


def check_masks() -> None:
    x, y = torch.randn(2, 2, 4, 50, 16)
    found, expected = (
        attrdrop.keep_mask(x, y, p=0.3, q=0.5, seed=1, backend=backend) for backend in ("cpp", "reference")
    )
    assert torch.equal(found.rows, expected.rows)
    q = torch.randn(2, 4, 50, 16, requires_grad=True)
    attrdrop.masked_attention(q, x, y, found, dropout_p=0.1, seed=2, backend="cpp").sum().backward()
    assert q.grad is not None
    assert q.grad.isfinite().all()


def check_addrop() -> None:
    trainer_class = attrdrop.ADDropTrainer  # makes attn_implementation="attrdrop" known
    config = transformers.BertConfig(**SIZE, attn_implementation="attrdrop")
    model = transformers.BertForSequenceClassification(config)
    before = model.classifier.weight.detach().clone()
    data = [{"input_ids": torch.randint(100, (12,)), "labels": torch.tensor(n % 2)} for n in range(8)]
    arguments = transformers.TrainingArguments(
        "run", max_steps=1, logging_steps=1, report_to="none", save_strategy="no", use_cpu=True
    )
    addrop = attrdrop.ADDropConfig(p=0.3, q=0.5, cross_tuning=False)
    trainer = trainer_class(model, arguments, train_dataset=data, addrop=addrop)
    trainer.train()
    assert trainer.state.log_history[0]["addrop_fraction_dropped"] > 0
    assert not torch.equal(before, model.classifier.weight)


def check_reldrop() -> None:
    model = resnet10(classes=10)
    reldrop = attrdrop.RelDrop(model, p=1.0, alpha=1.0)
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    torch.nn.functional.cross_entropy(model(reldrop(images, labels)), labels).backward()
    assert reldrop.statistics().occluded > 0


if __name__ == "__main__":
    torch.manual_seed(0)
    for check in (check_masks, check_addrop, check_reldrop):
        check()
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(json.dumps(versions))
