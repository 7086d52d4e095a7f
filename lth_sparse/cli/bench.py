"""The command `bench` and its options; `measuring` does the work and is imported only then."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["bench"]


def bench(
    cases: Annotated[
        str | None,
        typer.Option(
            help="Layers: names, globs and tags (headline, networks, vgg19, all ...), with commas.",
            show_default="headline",
        ),
    ] = None,
    densities: Annotated[
        str | None,
        typer.Option(
            help="Shares of the weights kept, with commas. Default: 0.5,0.2,0.1,0.05,0.02,0.01 for layers, "
            "0.5,0.2,0.1,0.05 for networks.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[str, typer.Option(help="Numbers of threads, with commas, such as 1,2.")] = "1",
    layouts: Annotated[
        str | None, typer.Option(help="Ours, with commas.", show_default="csr,bsr-4x1,bsr-16x16")
    ] = None,
    modes: Annotated[
        str | None, typer.Option(help="Some of forward, forward+dx, step.", show_default="forward,step")
    ] = None,
    peers: Annotated[
        str | None,
        typer.Option(help="Other libraries to measure besides dense torch, with commas, or none. Default: all."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Time for each candidate of a comparison.", show_default="0.2")
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(
            help="How a call finds the machine: steady, as in a training loop that keeps its memory; or cold, after "
            "other candidates took the caches.",
            show_default="steady",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer densities and peers, less time: a first look.")] = False,
    end_to_end: Annotated[
        bool,
        typer.Option(
            "--end-to-end", help="Instead of layers: training steps and searches of whole networks, chains of layers."
        ),
    ] = False,
    networks: Annotated[
        str | None, typer.Option(help="With --end-to-end: some of lenet, conv6, resnet18, vgg19.", show_default="all")
    ] = None,
    parts: Annotated[
        str | None, typer.Option(help="With --end-to-end: some of step, search, chain.", show_default="step,search")
    ] = None,
    levels: Annotated[
        int | None, typer.Option(min=1, help="With --end-to-end: prunings of a search.", show_default="20")
    ] = None,
    iterations: Annotated[
        int | None,
        typer.Option(min=1, help="With --end-to-end: steps of a level.", show_default="lenet 300, conv6 20"),
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu; or cuda: the suite of the GPU kernels, with --cases, --goals, --minutes alone.")
    ] = "cpu",
    goals: Annotated[
        str | None, typer.Option(help="With --device cuda: some of G1 ... G11, with commas.", show_default="all")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="With --device cuda: begin no case after so long.", show_default="5")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Append every measurement to this file.", show_default=False)] = None,
    plots: Annotated[Path | None, typer.Option(help="Directory to draw SVG plots into.", show_default=False)] = None,
) -> int:
    """Measure layers, or whole networks, against dense torch and other libraries on this machine."""
    from lth_sparse.cli.measuring import Options, run

    return run(
        Options(
            cases=cases,
            densities=densities,
            threads=threads,
            layouts=layouts,
            modes=modes,
            peers=peers,
            seconds=seconds,
            state=state,
            quick=quick,
            end_to_end=end_to_end,
            networks=networks,
            parts=parts,
            levels=levels,
            iterations=iterations,
            device=device,
            goals=goals,
            minutes=minutes,
            csv=csv,
            plots=plots,
        )
    )
