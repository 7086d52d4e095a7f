"""The commands of `lth-sparse`, their options, and how every failure ends.

Nothing is computed here: a command gathers its options and calls the module of its name, imported only then.
`bench`, `convert`, `export` and `sweep` have files of their own.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lth_sparse.cli.bench import bench
from lth_sparse.cli.converting import convert
from lth_sparse.cli.export import export
from lth_sparse.cli.sweep import FORWARDS, sweep
from lth_sparse.errors import LTHSparseError

__all__ = ["app", "main"]

INTERRUPTED = 130  # 128 + SIGINT, as shells have it

MODELS_HELP = (
    "lenet, conv2, conv4, conv6, or conv2-, conv4-, conv6-dropout; resnet (ResNet-20) or vgg (VGG-19), which find "
    "tickets as resnet-warmup, vgg-warmup; also resnet-low, vgg-low (lr 0.01) and vgg-layerwise."
)

#: ClickException under any typer: the installed click's, or the copy that newer typers bring along.
_CommandLineError: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")

app = typer.Typer(
    name="lth-sparse",
    add_completion=False,
    help="Find sparse winning tickets that train and run faster than the dense network.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line, by default the process's own; return its exit code. Errors become one line on stderr."""
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        command = typer.main.get_command(app)
        code = command.main(
            args=None if arguments is None else list(arguments), prog_name="lth-sparse", standalone_mode=False
        )
        sys.stdout.flush()  # here, so that a closed pipe is met inside this block
    except LTHSparseError as error:
        return _fail(str(error))
    except _CommandLineError as error:
        return _fail(f"{error.format_message()} (see lth-sparse --help)")
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`| head`); Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        return _fail(f"cannot use{where}: {error.strerror or error}")
    return code if isinstance(code, int) else 0


def _fail(message: str) -> int:
    print("lth-sparse: error:", " ".join(message.split()), file=sys.stderr)
    return 1


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """One line instead of Python's two with a source path."""
    print("lth-sparse: warning:", " ".join(str(message).split()), file=sys.stderr)


def _print_version(wanted: bool) -> None:
    if wanted:
        from lth_sparse._version import __version__

        print(f"lth-sparse {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def find(
    model: Annotated[str, typer.Argument(help=MODELS_HELP, show_default=True)] = "lenet",
    dataset: Annotated[
        str | None,
        typer.Option(
            help="digits (offline), mnist or cifar10. Default: the paper's own when --data is given, else digits.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Directory that holds the files of mnist or cifar10.", show_default=False)
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A budget of minutes on two cores, made for digits.")] = False,
    levels: Annotated[
        int | None, typer.Option(min=1, help="Prunings; levels + 1 networks are trained.", show_default="the preset's")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Independent repetitions.")] = 3,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Optimiser steps of each training.", show_default="the preset's")
    ] = None,
    rewind: Annotated[
        str, typer.Option(help="init, a step such as 500it, epochs such as 3ep, auto, continue, lr or finetune.")
    ] = "init",
    criterion: Annotated[
        str,
        typer.Option(
            help="What the smallest of are pruned. After training: magnitude (= large_final), small_final, random, "
            "large_init, small_init, large_init_large_final, small_init_small_final, magnitude_increase, movement, "
            "large_final_same_sign, large_final_diff_sign, gradient, taylor. Before it, each level from the untrained "
            "network: snip, grasp, synflow.",
        ),
    ] = "magnitude",
    scope: Annotated[
        str | None,
        typer.Option(
            help="layer, global, or erk (Erdos-Renyi-Kernel densities): where the smallest weights are looked for.",
            show_default="layer; global for snip, grasp, synflow",
        ),
    ] = None,
    granularity: Annotated[
        str,
        typer.Option(
            help="What is pruned at once: weight, row, block:RxC, vector:Rx1, column, channel, N:M such as 2:4; of "
            "convolutions only: filter, kernel.",
        ),
    ] = "weight",
    freeze: Annotated[
        list[str] | None,
        typer.Option(
            help="Layers never to prune: a name, a glob or a type such as Linear; may be repeated.", show_default="none"
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Share of the surviving weights pruned per level; the output layer gets half.",
            show_default="the preset's",
        ),
    ] = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Time the layers first and store each as that says, at every level. Without it, density decides alike "
            "on all machines.",
        ),
    ] = False,
    controls: Annotated[
        bool,
        typer.Option(
            "--controls/--no-controls",
            help="Train random controls of the best and of the last level.",
        ),
    ] = True,
    init: Annotated[
        str | None,
        typer.Option(
            help="glorot_normal, glorot_truncated, kaiming_normal, orthogonal or signed_constant.",
            show_default="the paper's, glorot_normal",
        ),
    ] = None,
    more_controls: Annotated[
        str,
        typer.Option(
            help="Further controls, comma separated: random, global_shuffled, dm_reinit, prune_at_0, noise_0.5, "
            "noise_1, noise_2, noise_3, signed_constant, rescaled, reordered; or all.",
        ),
    ] = "",
    barrier: Annotated[
        bool,
        typer.Option("--barrier", help="Report the error barrier to another data order: 2 or 3 trainings more a seed."),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Check while training that nothing pruned comes back; costs time.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Run directory; one that holds part of the same run is continued.",
            show_default="runs/<preset>-<dataset>",
        ),
    ] = None,
    layout: Annotated[str, typer.Option(help="auto, csr or dense: how pruned layers are stored and run.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of torch and of the kernels.", show_default="torch's")
    ] = None,
) -> int:
    """Find a winning ticket by iterative magnitude pruning, compare it with dense and controls, and write a report."""
    from lth_sparse.cli.find import Options, run

    return run(
        Options(
            model=model,
            dataset=dataset,
            data=data,
            quick=quick,
            levels=levels,
            seeds=seeds,
            iterations=iterations,
            rewind=rewind,
            criterion=criterion,
            scope=scope,
            granularity=granularity,
            freeze=tuple(freeze or ()),
            rate=rate,
            controls=controls,
            more_controls=more_controls,
            barrier=barrier,
            init=init,
            strict=strict,
            output=output,
            layout=layout,
            threads=threads,
            plan=plan,
        )
    )


@app.command()
def reproduce(
    network: Annotated[str, typer.Argument(help="lenet, conv2, conv4, conv6, resnet or vgg.")] = "lenet",
    budget: Annotated[
        str, typer.Option(help="quick: minutes on two cores, made for digits; full: the paper's own iterations.")
    ] = "quick",
    figure: Annotated[
        int | None, typer.Option(help="Train and judge only what one of the paper's figures needs.", show_default="all")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Independent repetitions.")] = 5,
    data: Annotated[
        Path | None,
        typer.Option(help="Directory with the files of MNIST or CIFAR-10; without it, digits.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Run directory; one that holds part of the same run is continued.",
            show_default="runs/reproduce-<network>-<dataset>-<budget>",
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of torch and of the kernels.", show_default="torch's")
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Optimiser steps of each training.", show_default="the budget's")
    ] = None,
    levels: Annotated[int | None, typer.Option(min=1, help="Prunings.", show_default="the budget's")] = None,
) -> int:
    """Repeat the paper's experiment on a network and judge its claims; exit code 1 if one is contradicted."""
    from lth_sparse.cli.reproduce import Options, run

    return run(Options(network, budget, figure, seeds, data, output, threads, iterations, levels))


app.command()(convert)
app.command()(export)
app.command()(bench)
app.command(context_settings=FORWARDS)(sweep)


@app.command()
def plan(
    model: Annotated[
        str,
        typer.Argument(help="A network of the paper (lenet, conv2, ...), or package.module:function that builds one."),
    ],
    shape: Annotated[
        str | None,
        typer.Option("--input", help="Shape of an input, batch first, such as 60x784.", show_default="the paper's"),
    ] = None,
    density: Annotated[
        str | None, typer.Option(help="Shares of the weights kept.", show_default=".5,.2,.1,.05")
    ] = None,
    block: Annotated[
        str | None, typer.Option(help="Plan for BSR too, in such blocks: rows x columns.", show_default=False)
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of torch and of the kernels.", show_default="torch's")
    ] = None,
    predict: Annotated[
        bool, typer.Option("--predict", help="Ask the cost model instead of timing this network's layers.")
    ] = False,
    device: Annotated[str, typer.Option(help="Where the network runs: cpu, cuda or cuda:N.")] = "cpu",
    channels_last: Annotated[
        bool,
        typer.Option(
            "--channels-last", help="Blocks of channels_last weights, and images in that memory format (GPUs only)."
        ),
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write all figures to this file.", show_default=False)
    ] = None,
) -> int:
    """Show what pruning a network would gain here: break-even densities of every layer and pass, and speed-ups."""
    from lth_sparse.cli.plan import run

    return run(
        model,
        shape=shape,
        density=density,
        block=block,
        threads=threads,
        predict=predict,
        device=device,
        channels_last=channels_last,
        json_file=json_file,
    )


@app.command()
def tune(
    model: Annotated[
        str | None,
        typer.Argument(help="A network: one of the paper's, or package.module:function.", show_default=False),
    ] = None,
    shape: Annotated[
        str | None, typer.Option("--input", help="Shape of an input of MODEL, batch first.", show_default="the paper's")
    ] = None,
    cases: Annotated[
        str | None,
        typer.Option(
            help="Benchmark layers: names, globs and tags, with commas.", show_default="headline, without MODEL"
        ),
    ] = None,
    density: Annotated[
        str | None, typer.Option(help="Shares of the blocks or weights kept, with commas.", show_default=".2,.1")
    ] = None,
    blocks: Annotated[
        str | None, typer.Option("--block", help="Rows x columns, with commas.", show_default="32x32,64x64")
    ] = None,
    layout: Annotated[str, typer.Option(help="bsr, or csr: single weights, without blocks.")] = "bsr",
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    forward: Annotated[bool, typer.Option("--forward", help="The forward pass alone, no gradients.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Also what was tuned before.")] = False,
    limit: Annotated[int, typer.Option(min=2, help="Configurations tried for a launch.")] = 24,
    export: Annotated[
        Path | None,
        typer.Option(
            help="Write all that was tuned on this GPU to this file, a table as lth_sparse ships them. Without MODEL "
            "and --cases nothing is tuned before.",
            show_default=False,
        ),
    ] = None,
) -> int:
    """Time launch configurations of the Triton kernels on this GPU, and keep the fastest for later runs."""
    from lth_sparse.cli.tune import Options, run

    return run(
        Options(
            model=model,
            shape=shape,
            cases=cases,
            density=density,
            blocks=blocks,
            layout=layout,
            dtype=dtype,
            forward=forward,
            again=again,
            limit=limit,
            export=export,
        )
    )


@app.command()
def doctor() -> int:
    """Check this installation: versions, kernels, devices, caches, and one sparse layer timed against dense torch."""
    from lth_sparse.cli.doctor import run

    return run()
