"""What idle instances keep of their memory, with Medes and with each alternative, on the same captured images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from medes.bench import dedup
from medes.eval.case import Context, Figure, Record
from medes.eval.cases import needs

# Scheme of `medes bench dedup` → the alternative that it stands for.
ALTERNATIVES = {"medes": "medes", "zstd": "zram-zstd", "lz4": "zram-lz4", "paper": "paper", "ksm": "ksm"}


@dataclass(frozen=True)
class Options:
    """`only`: these functions, at least two; without names the project's ten."""

    instances: int = 3
    paper_sample: int = 40
    only: tuple[str, ...] = ()

    @classmethod
    def quick(cls) -> Self:
        return cls(instances=2, paper_sample=2, only=("vanilla", "aes"))


class IdleMemory:
    """Over all functions: `warm_bytes` and `kept_bytes` of all but the first instances, by alternative. `first_bytes`: of the
    first instances, which are whole the base pages of the paper's patches, and what KSM merges others with. Medes makes
    base pages of `base_bytes` of them; `first_kept_bytes` are their own patches beside that, `registry_bytes` what finds the
    base pages again."""

    name = "idle-memory"
    summary = "memory of idle instances of real functions: Medes, zram, the paper's patches, KSM"
    options = Options

    def missing(self) -> dict[str, str]:
        names = ("zstandard", "lz4", "pyxdelta")
        return {
            **needs.functions(),
            **needs.packages(names, "bench"),
            **needs.packages(["numpy"], "functions"),
        }

    def run(self, context: Context) -> Iterator[Record]:
        options: Options = context.options
        functions = set()
        for line in dedup.run(
            None,
            options.instances,
            True,
            tuple(ALTERNATIVES),
            paper_sample=options.paper_sample,
            only=options.only,
        ):
            if line["function"] != "ALL":
                functions.add(line["function"])
                context.progress(f"{line['function']}: {line['scheme']}")
            elif line["bases"] == "same":
                labels = {"alternative": ALTERNATIVES[line["scheme"]]}
                yield Figure("warm_bytes", line["warm_bytes"], labels)
                yield Figure("kept_bytes", line["kept_bytes"], labels)
            elif line["bases"] == "shared":
                yield Figure("first_bytes", line["base_whole_bytes"])
                yield Figure("base_bytes", line["base_stored_bytes"])
                yield Figure("first_kept_bytes", line["bases_kept_bytes"])
                yield Figure("registry_bytes", line["registry_bytes"])
                yield Figure("functions_count", len(functions))
