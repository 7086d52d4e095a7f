"""The options of `lth-sparse convert`, which does two things: `--to` writes a ticket as plain tensors, `--target` turns
it into blocks and says what that costs. What they do is in `convert.py` and `ledger.py`, imported only then."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lth_sparse.errors import ArgumentError, expected

__all__ = ["convert"]


def convert(
    ticket: Annotated[Path, typer.Argument(help="A ticket file written by find or Ticket.save.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The .safetensors file to write; required with --to.",
            show_default="ticket.safetensors in the report's directory",
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            help="dense: a state dict for the plain architecture; csr, 2:4: values with their indices.",
            show_default="dense, without --target",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="With --to: trained, as the level ended, or initial, as the ticket starts training.",
            show_default="trained",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="cpu or cuda: try every method that makes blocks, measure speed and accuracy, and write the best "
            "ticket.",
            show_default=False,
        ),
    ] = None,
    budget_loss: Annotated[
        float, typer.Option(help="With --target: percentage points of test accuracy that it may lose.")
    ] = 0.5,
    retrain: Annotated[
        int | None,
        typer.Option(min=0, help="Optimiser steps of each retraining; 0 for none.", show_default="the search's"),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Retrainings of each, whose mean counts.")] = 1,
    methods: Annotated[
        str | None,
        typer.Option(
            help="With commas: cover, drop, vectors, refill, refill+, regroup, 2:4, each with a block, a padding and "
            "the like behind colons, such as drop:16x16:zeros.",
            show_default="a dozen, by target",
        ),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            help="lenet, conv2, ... or package.module:function, for a ticket outside a run directory.",
            show_default="the run's",
        ),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option("--input", help="Shape of an input of package.module:function, batch first.", show_default=False),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The quick budget of --network.")] = False,
    dataset: Annotated[
        str | None, typer.Option(help="digits, mnist or cifar10, with --network.", show_default="the preset's")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Directory that holds the files of mnist or cifar10.", show_default=False)
    ] = None,
    dense: Annotated[
        Path | None,
        typer.Option(
            help="Ticket of level 0, whose initial weights added weights start from.",
            show_default="the one beside TICKET",
        ),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(help="NAME=TICKET of the same network, to compare with; may be repeated.", show_default=False),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Directory for ledger.json and report.html.", show_default="runs/convert-<ticket>-<its hash>"
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of torch and of the kernels.", show_default="torch's")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="Seconds for which each network is timed.")] = 1.0,
) -> int:
    """Write a ticket as plain tensors (--to), or turn it into blocks that run fast (--target), with the price of it."""
    if target is None:
        from lth_sparse.cli.convert import run

        if output is None:
            raise ArgumentError(expected("--output", "the file to write, or --target cpu", "none"))
        return run(ticket, output, to=to or "dense", weights=weights or "trained")
    for name, value in (("--to", to), ("--weights", weights)):
        if value is not None:
            raise ArgumentError(expected(name, "nothing beside --target, which writes a ticket", value))
    from lth_sparse.cli.ledger import Options
    from lth_sparse.cli.ledger import run as run_ledger

    return run_ledger(
        Options(
            ticket=ticket,
            target=target,
            budget_loss=budget_loss,
            retrain=retrain,
            repeats=repeats,
            methods=methods,
            network=network,
            shape=shape,
            quick=quick,
            dataset=dataset,
            data=data,
            dense=dense,
            compare=tuple(compare or ()),
            output=output,
            report=report,
            threads=threads,
            seconds=seconds,
        )
    )
