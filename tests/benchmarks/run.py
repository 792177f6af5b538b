"""Quality of pyrovi's SCVI against scvi-tools on real data; writes ``docs/benchmarks.md``.

``make bench`` runs it; see that page for what is measured. Prepared data and the result of every
run are kept in ``.benchmarks/quality``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from children import machine
from peers import HERE, ROOT, peer_python
from quality_common import Job
from quality_data import KANG, PBMC3K, Dataset, prepare
from quality_report import Comparison, Result, page, quality_table

WORK = ROOT / ".benchmarks" / "quality"
PAGE = ROOT / "docs" / "benchmarks.md"


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    dataset: Dataset
    gene_likelihood: str
    same_warmup: bool
    """Whether both sides have the data set's warm-up, or each its own default."""
    n_seeds: int = 3

    @property
    def warmup(self) -> str:
        """The warm-up in words."""
        return f"{self.dataset.n_epochs_kl_warmup} epochs" if self.same_warmup else "own default"


CASES = [
    # few cells, so that one run says little of the label accuracy: more seeds
    Case(PBMC3K, "zinb", same_warmup=True, n_seeds=6),
    Case(KANG, "zinb", same_warmup=True),
    Case(KANG, "nb", same_warmup=True),
    Case(PBMC3K, "zinb", same_warmup=False),
]
QUICK = [
    Case(replace(PBMC3K, max_epochs=40, n_epochs_kl_warmup=10), "zinb", same_warmup=True, n_seeds=1)
]


def make_job(case: Case, seed: int) -> Job:
    """The job that both sides get."""
    data = case.dataset
    return Job(
        data=str(WORK / f"{data.name}.h5ad"),
        split=str(WORK / f"{data.name}-split{seed}.npz"),
        labels_key=data.labels_key,
        batch_key=data.batch_key,
        gene_likelihood=case.gene_likelihood,
        max_epochs=data.max_epochs,
        n_epochs_kl_warmup=data.n_epochs_kl_warmup if case.same_warmup else None,
        seed=seed,
    )


def run_job(job: Job, side: str, python: str, resume: bool) -> Result:
    """Run one side in a process of its own; with ``resume``, take the result it left before."""
    warmup = "default" if job.n_epochs_kl_warmup is None else str(job.n_epochs_kl_warmup)
    name = f"{Path(job.data).stem}-{job.gene_likelihood}-{job.max_epochs}-{warmup}-{job.seed}"
    name += f"-{side}"
    job_file, result_file = WORK / f"{name}.job.json", WORK / f"{name}.json"
    if resume and result_file.exists():
        result: Result = json.loads(result_file.read_text())
        if result["job"] == asdict(job):
            return result
    job_file.write_text(json.dumps(asdict(job)))
    result_file.unlink(missing_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [python, str(HERE / f"quality_{side}.py"), str(job_file), str(result_file)]
    log = WORK / f"{name}.log"
    with log.open("w") as output:
        code = subprocess.run(command, stdout=output, stderr=output, env=environment).returncode
    if code:
        raise SystemExit(f"{side} failed:\n{log.read_text()[-3000:]}")
    return json.loads(result_file.read_text())


def compare(case: Case, peer: str, resume: bool) -> Comparison:
    """Run both sides of a case in turn, seed by seed."""
    ours: list[Result] = []
    theirs: list[Result] = []
    for seed in range(case.n_seeds):
        job = make_job(case, seed)
        for side, python, results in (("pyrovi", sys.executable, ours), ("scvi", peer, theirs)):
            result = run_job(job, side, python, resume)
            results.append(result)
            print(
                f"{case.dataset.name} {case.gene_likelihood} warm-up {case.warmup} seed {seed} "
                f"{side:6}: ELBO {result['elbo']:.2f}, log p(x) {result['marginal_ll']:.2f}, "
                f"k-NN {100 * result['knn_accuracy']:.2f} %, "
                f"{result['seconds_per_epoch']:.2f} s/epoch",
                flush=True,
            )
    return Comparison(case.dataset.title, case.warmup, ours, theirs, judged=case.same_warmup)


def describe(datasets: list[Dataset]) -> str:
    """Data and epochs, as a Markdown list."""
    lines = []
    for d in datasets:
        genes = (
            "all genes of the file"
            if d.n_genes is None
            else f"the {d.n_genes:,} genes with the largest variance of log1p(counts per 10,000)"
        )
        batch = f"batch `{d.batch_key}`" if d.batch_key else "no batch"
        lines.append(f"- {d.title} (`{d.file}`): {genes}; {batch}; {d.max_epochs} epochs.")
    return "\n".join(lines)


def main() -> None:
    """Prepare the data, run all cases, judge, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one case, one seed, no page")
    parser.add_argument("--resume", action="store_true", help="keep results of an earlier call")
    arguments = parser.parse_args()
    source = Path(os.environ.get("PYROVI_DATA", ""))
    if not os.environ.get("PYROVI_DATA") or not source.is_dir():
        raise SystemExit("Set PYROVI_DATA to the folder with the real data sets.")
    os.nice(10)
    peer = str(peer_python())
    cases = QUICK if arguments.quick else CASES
    datasets = list({case.dataset.name: case.dataset for case in cases}.values())
    for dataset in datasets:
        prepare(dataset, source, WORK, max(case.n_seeds for case in cases))
    comparisons = [compare(case, peer, arguments.resume) for case in cases]
    print("\n" + quality_table(comparisons))
    if arguments.quick:
        return
    PAGE.write_text(page(comparisons, machine(), describe(datasets)))
    print(f"\nWrote {PAGE.relative_to(ROOT)}")
    if not all(c.passed for c in comparisons if c.judged):
        raise SystemExit("pyrovi is worse than scvi-tools by more than the margin.")


if __name__ == "__main__":
    main()
