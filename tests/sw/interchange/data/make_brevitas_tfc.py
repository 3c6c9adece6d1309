"""Makes brevitas_tfc_1w1a.onnx, the smallest of FINN's own example networks, for tests/sw/interchange/test_brevitas.py.

TFC_1W1A comes with Brevitas (`brevitas_examples.bnn_pynq`): three layers of 64 neurons and ten outputs, weights and activations
-1 or +1, images of one bit, and a norm of the whole output. The file was made in an environment of its own with Brevitas
0.13.4, torch 2.13.0, onnx 1.22.0, onnxoptimizer, qonnx 1.0.0 and scipy, MNIST under ESBFLOW_DATA:

    PYTHONPATH=sw python tests/sw/interchange/data/make_brevitas_tfc.py tests/sw/interchange/data/brevitas_tfc_1w1a.onnx

It prints the accuracy that the tests expect. The loss is the squared hinge of Brevitas' own training.
"""

import sys

import torch
from brevitas.export import export_qonnx
from brevitas_examples.bnn_pynq.models import model_with_cfg

from esbflow.training.data import load_images

EPOCHS, BATCH = 15, 100


def batches(part: str) -> tuple:
    images, labels = load_images("mnist", part)
    return torch.from_numpy(images).float() / 255, torch.from_numpy(labels).long()


def main(path: str) -> None:
    torch.manual_seed(0)
    model, _ = model_with_cfg("TFC_1W1A", False)
    images, labels = batches("train")
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(images) // BATCH)
    for _ in range(EPOCHS):
        model.train()
        for batch in torch.randperm(len(images)).split(BATCH):
            sides = 2.0 * torch.nn.functional.one_hot(labels[batch], 10) - 1
            loss = (1 - sides * model(images[batch])).clamp(min=0).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            model.clip_weights(-1, 1)
    model.eval()
    images, labels = batches("test")
    with torch.no_grad():
        print(f"top-1 on 10,000 images: {100 * (model(images).argmax(1) == labels).float().mean():.2f} %")
    export_qonnx(model, args=images[:1], export_path=path, opset_version=17, dynamo=False)


if __name__ == "__main__":
    main(sys.argv[1])
