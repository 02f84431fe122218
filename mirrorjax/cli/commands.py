"""The commands of `mirrorjax`: they read the arguments, call the rooms below, and print what comes back.

Errors and signals leave the commands as exceptions, which `ending` turns into one line and an exit status.

A command imports what it uses inside its function: `mirrorjax --help` would take seconds if this file imported jax.
Every command computes in float64 unless told otherwise; the flag of jax is set here and nowhere else in the package.
"""

import importlib.metadata
import importlib.resources
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..experiments.core.experiment import LARGEST_SEED, Experiment
from ..experiments.core.folders import exists
from ..experiments.table import EXPERIMENTS
from .ending import FAILED, console, fail, stopping, tell
from .recipes import RECIPE, run_recipe, summarise
from .setup import read_json, require_new_files, set_precision

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # as markup the square brackets of a help text would vanish
    help="How explicit regularization shapes implicit bias: simulate it, reproduce the paper, explain a schedule. "
    "Compiled programs are kept in your cache folder; MIRRORJAX_COMPILATION_CACHE=off turns that off.",
)
ALL = "all"
CONFIG = "config.json"


class Preset(StrEnum):
    paper = "paper"
    gpu = "gpu"
    quick = "quick"


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"mirrorjax {importlib.metadata.version('mirrorjax')}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Adds the names that need jax to the help of `explain`, and handles `--version`."""
    if context.invoked_subcommand == "explain":
        _complete_help(context)


def _complete_help(context: typer.Context) -> None:
    """Adds the names of families and schedules to the help of `explain`, where jax is needed in any case."""
    from .explain import SCHEDULES, family_names

    names = {"family": [*family_names(), "module:object for your own"], "schedule": list(SCHEDULES)}
    command = getattr(context.command, "commands")["explain"]  # noqa: B009  # a group of click has it, its type does not
    for parameter in command.params:
        if parameter.name in names:
            parameter.help = f"One of: {', '.join(names[parameter.name])}."


@app.command("list")
def list_experiments() -> None:
    """List the experiments that `mirrorjax reproduce NAME` knows."""
    from rich.table import Table

    table = Table("experiment", "presets", "what it shows", title="mirrorjax reproduce NAME", title_justify="left")
    for experiment in EXPERIMENTS.values():
        table.add_row(experiment.name, ", ".join(experiment.presets), experiment.summary)
    table.add_row(ALL, ", ".join(Preset), "All of them, one after the other, in one report.")
    console().print(table)


@app.command()
def reproduce(
    name: Annotated[str, typer.Argument(help="An experiment of `mirrorjax list`, or all.", show_default=False)],
    preset: Annotated[
        Preset, typer.Option(help="paper: the paper's size. gpu: networks, for one GPU. quick: minutes on a CPU.")
    ] = Preset.paper,
    out: Annotated[
        Path | None,
        typer.Option(help="A new folder for the results [default: runs/NAME-PRESET-TIME].", show_default=False),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, max=LARGEST_SEED, help="Seed of the random data [default: the experiment's].", show_default=False
        ),
    ] = None,
    float32: Annotated[bool, typer.Option("--float32", help="Single precision instead of double.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the interrupted run in --out [default: the newest in runs/].")
    ] = False,
) -> None:
    """Reproduce an experiment of the paper: tables, figures, data and an HTML report in one folder.

    Every number stands beside the paper's. Ctrl-C keeps what was finished, and --resume continues trainings of
    networks from their checkpoints. `all` runs every experiment that has the
    preset, with one report of all; one that fails does not stop the others, and the exit status is 1 then.
    """
    from ..experiments import Setting, reproduce as reproduce_one, reproduce_all
    from ..experiments.core.report import REPORT
    from ..experiments.core.reproduce import print_summary

    chosen = _with_preset(list(EXPERIMENTS.values()) if name == ALL else [_find(name)], str(preset))
    set_precision(float32)
    bits = 32 if float32 else 64
    path = out if out is not None else _run_folder(f"{name}-{preset}", resume)
    terminal, failed = console(), []
    words = f"Interrupted. What was finished is in {path}; --resume --out {path} goes on with it"
    with stopping(lambda: words if exists(path) else "Interrupted."):
        if name == ALL:
            failed = reproduce_all(chosen, path, str(preset), seed, bits, terminal, resume=resume)
            print_summary(path, terminal)
        else:
            setting = Setting(str(preset), chosen[0].seed if seed is None else seed, bits)
            reproduce_one(chosen[0], path, setting, terminal, resume=resume)
    tell(f"Results are in {path}, to be read in {path / REPORT}")
    if failed:
        tell(f"{len(failed)} failed: {', '.join(failed)}", stderr=True, error=True)
        raise SystemExit(FAILED)


def _run_folder(name: str, resume: bool) -> Path:
    """A new folder for a run of this name, or the newest that there is; ends the command where there is none."""
    if not resume:
        return Path("runs") / f"{name}-{datetime.now().strftime('%Y%m%d-%H%M%S')}"
    found = sorted(Path("runs").glob(f"{name}-*"))  # by the times in their names
    if not found:
        fail(f"there is no run in runs/{name}-* to go on with; name its folder with --out")
    return found[-1]


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a run, or of runs in folders.", show_default=False)],
) -> None:
    """Write the HTML report of what is in a folder of `mirrorjax reproduce`, finished or not, or of many.

    One file, with its pictures inside, that can be read in any browser and sent to anyone.
    """
    from ..experiments.core.report import write_report

    with stopping(lambda: "Interrupted."):
        tell(f"The report is {write_report(folder)}")


@app.command("explain")
def explain_schedule(
    family: Annotated[str, typer.Argument(help="A reparameterization x = g(w).", show_default=False)],
    init: Annotated[
        list[float], typer.Option("--init", "-i", help="Initial weights, one number a factor: -i 1 -i 0.1")
    ],
    schedule: Annotated[str, typer.Option(help="The regularizer's strength over time.")] = "switch-off",
    alpha: Annotated[float, typer.Option(help="Strength of the regularizer (at t = 0).")] = 0.2,
    t_off: Annotated[float, typer.Option(help="Time it is switched off.")] = 62.5,
    t1: Annotated[
        float | None, typer.Option(help="Last time of the table [default: 2 t_off].", show_default=False)
    ] = None,
    scale: Annotated[float, typer.Option(help="x at which the local exponent is read.")] = 1.0,
    times: Annotated[int, typer.Option(min=2, max=1000, help="Rows of the table.")] = 9,
    weight_decay: Annotated[
        bool, typer.Option("--weight-decay", help="Ordinary weight decay, not the regularizer that fits the family.")
    ] = False,
    out: Annotated[
        list[Path] | None,
        typer.Option(
            help="Where to draw R_a: a .png, .pdf or .svg file, or an .html page with a slider over time. May be given "
            "several times [default: no picture].",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show the effect of a schedule on the implicit bias of one coordinate x = g(w).

    Prints, over time, the regularization spent a, the minimizer of R_a (positional bias), and the local exponent of R_a
    at a scale (2 is L2-like, 1 is L1-like), with the regularizer that fits the family, or weight decay where none does.
    hadamard has as many factors as --init is given; for three and more, and for --weight-decay, the dual variable
    leaks, and the clock and the least time of a recovery are printed too. Of gram (U U^T) x is one eigenvalue, of
    matrix-product (attention, LoRA) one singular value. A family of your own is file.py:object or
    package.module:object.

    Example: mirrorjax explain hadamard -i 1 -i 0 --alpha 0.2 --t-off 62.5 --out R.png --out R.html
    """
    from .explain import Question, explain_bias

    set_precision(False)
    outs = [] if out is None else out
    require_new_files(outs)
    end = 2 * t_off if t1 is None else t1
    asked = Question(family, init, schedule, alpha, t_off, end, scale, times, weight_decay)
    with stopping(lambda: "Interrupted."):
        explain_bias(asked, outs, console())


Written = Annotated[
    list[Path] | None,
    typer.Option(
        "--out",
        help="Where to write: .png, .pdf or .svg for curves, .csv for all numbers. May be given several times "
        "[default: printed only].",
        show_default=False,
    ),
]


@app.command()
def spectra(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(help="Files .safetensors or .npz, or folders with one checkpoint each.", show_default=False),
    ],
    heads: Annotated[
        int | None,
        typer.Option(help="Query heads [default: as the config.json beside the file says].", show_default=False),
    ] = None,
    out: Written = None,
) -> None:
    """Show the spectra of W_K^T W_Q of each attention head, and of LoRA products, in checkpoints of any framework.

    Nuclear over Frobenius norm, effective rank and stable rank: all three fall where weight decay has moved the bias
    from the Frobenius norm to the nuclear norm. Layouts that are known by the names of their tensors: GPT-2, ViT,
    Llama and its relatives, PEFT. With several checkpoints of one run, curves over them.

    Example: mirrorjax spectra checkpoint-100 checkpoint-200 --heads 12 --out spectra.png
    """
    from .checkpoints import show_spectra

    outs = [] if out is None else out
    require_new_files(outs)
    with stopping(lambda: "Interrupted."):
        show_spectra(checkpoints, heads, outs, console())


@app.command()
def bias(
    start: Annotated[Path, typer.Argument(help="The weights before training.", show_default=False)],
    checkpoints: Annotated[list[Path], typer.Argument(help="The weights later in training.", show_default=False)],
    family: Annotated[str, typer.Option(help="The family g that the tensors are written by.")] = "hadamard",
    out: Written = None,
) -> None:
    """Show the bias a that training has accumulated in the weights of tensors x = g(w), as mirrorjax.read_bias does.

    The files are those of mirrorjax.nn.save_weights, of the weights that mirrorjax.nn.reparameterize returned and of
    later ones. For each tensor: the median of a over its entries, the middle half, and the number of entries that no
    flow reaches.

    Example: mirrorjax bias start.safetensors step-1000.safetensors step-2000.safetensors --out bias.png
    """
    from .checkpoints import show_bias

    set_precision(False)
    outs = [] if out is None else out
    require_new_files(outs)
    with stopping(lambda: "Interrupted."):
        show_bias(start, checkpoints, family, outs, console())


@app.command("sweep")
def sweep_file(
    file: Annotated[Path | None, typer.Argument(help="A TOML file: lane, t1, [grid], ...", show_default=False)] = None,
    out: Annotated[
        Path | None, typer.Option(help="A new folder for the run [default: runs/FILE-TIME].", show_default=False)
    ] = None,
    example: Annotated[bool, typer.Option("--example", help="Print a complete file, with comments, and exit.")] = False,
) -> None:
    """Solve every point of a grid that a TOML file describes, in a folder that survives being stopped or killed.

    The file names a function that makes a problem of parameters, and their values in a table [grid]. For one that runs
    as it is: mirrorjax sweep --example > sweep.toml && mirrorjax sweep sweep.toml
    """
    if example:
        text = importlib.resources.files("mirrorjax.sweeps").joinpath("example.toml").read_text(encoding="utf-8")
        typer.echo(text, nl=False)
        return
    if file is None:
        fail("give the TOML file of a sweep, or --example for one to begin with")
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    run_recipe(file.absolute(), out if out is not None else Path("runs") / f"{file.stem}-{stamp}", resume=False)


@app.command()
def resume(run: Annotated[Path, typer.Argument(help="The folder of a sweep.", show_default=False)]) -> None:
    """Go on with a sweep that was stopped or killed: the result is the same to the last bit."""
    pointer = run / RECIPE
    if not pointer.exists():
        fail(f"{run} is not the folder of `mirrorjax sweep`: it has no {RECIPE}")
    file = read_json(pointer).get("file")
    if not isinstance(file, str):
        fail(f'{pointer} does not name the TOML file of a sweep; it must be {{"file": "PATH"}}')
    run_recipe(Path(file), run, resume=True)


@app.command()
def status(
    run: Annotated[Path, typer.Argument(help="The folder of a sweep, or of `reproduce`.", show_default=False)],
) -> None:
    """Show how far a sweep is, and the statuses of its lanes; or, of a folder of `reproduce`, its claims and states."""
    config = read_json(run / CONFIG) if (run / CONFIG).exists() else {}
    if "experiment" in config or "experiments" in config:
        from ..experiments.core.reproduce import print_summary

        tell(f"{run} is a folder of `mirrorjax reproduce`")
        print_summary(run, console())
        tell(f"its report comes from: mirrorjax report {run}")
        return
    from ..runs import open_sweep

    set_precision(False)
    summarise(open_sweep(run), run)


def _find(name: str) -> Experiment:
    if name not in EXPERIMENTS:
        fail(f"there is no experiment {name!r}; there are: {', '.join(EXPERIMENTS)}, {ALL}")
    return EXPERIMENTS[name]


def _with_preset(experiments: list[Experiment], preset: str) -> list[Experiment]:
    chosen = [experiment for experiment in experiments if preset in experiment.presets]
    if not chosen:
        fail(f"{experiments[0].name} has no preset {preset!r}; it has: {', '.join(experiments[0].presets)}")
    return chosen
