"""The options of `lth-sparse export`, which :mod:`lth_sparse.cli.exporting` carries out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["export"]


def export(
    ticket: Annotated[Path, typer.Argument(help="A ticket file written by find or Ticket.save.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file to write: .onnx, .pt2 or .safetensors, as --to says.")
    ],
    to: Annotated[
        str,
        typer.Option(
            help="onnx; pt2: a program of torch.export; safetensors: a dense state dict; ticket: a ticket file with "
            "one set of weights, the smallest there is."
        ),
    ] = "onnx",
    model: Annotated[
        str | None,
        typer.Option(
            help="For onnx and pt2: a network of the paper (lenet, conv2, ...), or package.module:function that builds "
            "the dense one.",
            show_default=False,
        ),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            "--input", help="Shape of an input, batch first, such as 1x1x28x28.", show_default="an image of the paper's"
        ),
    ] = None,
    dynamic_batch: Annotated[bool, typer.Option("--dynamic-batch", help="Leave the size of the batch open.")] = False,
    sparse: Annotated[
        bool,
        typer.Option(
            "--sparse",
            help="pt2: keep sparse layers; the program then needs lth_sparse. onnx: store pruned weights sparsely; "
            "onnxruntime reads that and computes on dense ones.",
        ),
    ] = False,
    weights: Annotated[
        str, typer.Option(help="trained: as the level ended; initial: as the ticket starts training.")
    ] = "trained",
    dtype: Annotated[
        str | None, typer.Option(help="fp32, fp16 or bf16, in which weights are stored.", show_default="the ticket's")
    ] = None,
) -> int:
    """Write a ticket as a model that other programs run: ONNX, torch.export, or plain weights, and check it."""
    from lth_sparse.cli.exporting import Options, run

    return run(
        Options(
            ticket=ticket,
            output=output,
            to=to,
            model=model,
            shape=shape,
            dynamic_batch=dynamic_batch,
            sparse=sparse,
            weights=weights,
            dtype=dtype,
        )
    )
