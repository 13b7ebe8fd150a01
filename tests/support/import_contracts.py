"""Two import-linter contracts that its own types cannot express; named in pyproject.toml.

Both look at direct imports only and accept modules that do not exist.
"""

import sys
from fnmatch import fnmatchcase
from typing import Any, cast

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


def _top(module: str) -> str:
    return module.partition(".")[0]


class OnlyImportedBy(Contract):
    """A third-party package is imported by the named modules alone.

    `importers` are shell patterns over full module names, so that `shared.nats_*` covers modules still to come.
    """

    type_name = "only_imported_by"
    module = fields.StringField()
    importers = fields.ListField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        module, patterns = str(self.module), [str(pattern) for pattern in cast("list[str]", self.importers)]
        importers = sorted(graph.find_modules_that_directly_import(module)) if module in graph.modules else []
        offenders = [
            (importer, _line(graph, importer, module))
            for importer in importers
            if not any(fnmatchcase(importer, pattern) for pattern in patterns)
        ]
        return ContractCheck(kept=not offenders, metadata={"offenders": offenders})

    def render_broken_contract(self, check: ContractCheck) -> None:
        allowed = ", ".join(cast("list[str]", self.importers))
        for importer, line in check.metadata["offenders"]:
            output.print_error(f"{importer} (line {line}) imports {self.module}; only {allowed} may.")


class ImportsOnly(Contract):
    """A package imports itself, the standard library and what `allowed` names, and nothing else."""

    type_name = "imports_only"
    package = fields.StringField()
    allowed = fields.ListField(subfield=fields.StringField(), required=False, default=[])

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        package, allowed = str(self.package), cast("list[str]", self.allowed)
        accepted = {package, *allowed} | sys.stdlib_module_names
        members = [package, *graph.find_descendants(package)] if package in graph.modules else []
        offenders = [
            (importer, imported, _line(graph, importer, imported))
            for importer in sorted(members)
            for imported in sorted(graph.find_modules_directly_imported_by(importer))
            if _top(imported) not in accepted
        ]
        return ContractCheck(kept=not offenders, metadata={"offenders": offenders})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for importer, imported, line in check.metadata["offenders"]:
            output.print_error(
                f"{importer} (line {line}) imports {imported}; {self.package} uses the standard library only."
            )


def _line(graph: ImportGraph, importer: str, imported: str) -> Any:
    details = graph.get_import_details(importer=importer, imported=imported)
    return details[0]["line_number"] if details else "?"
