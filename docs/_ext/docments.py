"nbdev's docments, the comments beside parameters, as a table under each signature."

import inspect, re
from types import UnionType

from fastcore.docments import docments, empty


def rst(text: str) -> str:
    "Comment or docstring, with code in single backticks, as reStructuredText."
    parts = re.split(r"`([^`]+)`", text)
    return "".join(
        f"\\ ``{s}``\\ " if i % 2 else re.sub(r"([\\*_|`]|tcp(?=://))", r"\\\1", s) for i, s in enumerate(parts)
    )


def type_name(anno: object) -> str:
    "An annotation as one writes it."
    if anno is empty or anno is None:
        return "None" if anno is None else ""
    if isinstance(anno, (str, UnionType)):
        return str(anno).replace("torch._C.", "torch.")
    return re.sub(
        r"\b(torch\._C|collections\.abc|pandas\.\w+\.\w+|torch\.nn\.modules\.\w+|matplotlib\.figure"
        r"|pathlib\w*(?:\._local)?)\.",
        "",
        anno.__name__ if isinstance(anno, type) and not hasattr(anno, "__args__") else str(anno),
    )


def row(*cells: str) -> list[str]:
    return [f"   {'* -' if i == 0 else '  -'} {c}" for i, c in enumerate(cells)]


def signature_comments(obj: object) -> dict[str, str]:
    "Comments beside starred parameters and beside what comes back, which docments mixes up."
    lines, found = inspect.getsource(obj.__init__ if inspect.isclass(obj) else obj).splitlines(), {}
    start = next(i for i, line in enumerate(lines) if line.lstrip().startswith("def "))
    for line in lines[start + 1 :]:
        said = re.match(r"\s*(?:\*{1,2}(\w+)|(\))) *[^#]*(?:# *(.*))?$", line)
        if said:
            found[said[1] or "return"] = said[3] or ""
        if said and said[2]:
            return found
    return {}


def table(obj: object) -> list[str]:
    "The parameters of a function, method or class, and what comes back; nothing where there is nothing to say."
    given = {name: p for name, p in docments(obj, full=True, returns=True).items() if name not in ("self", "cls")}
    back = given.pop("return", None)
    if any(p["kind"] in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD) for p in given.values()):
        for name, comment in signature_comments(obj).items():
            entry = back if name == "return" else given.get(name)
            if entry:
                entry["docment"] = comment
    if inspect.isclass(obj) or back and back["anno"] in (empty, None) and not back["docment"]:
        back = None
    if not given and not back:
        return []
    code = lambda s: f"``{s}``" if s else ""
    rows = [("parameter", "type", "default", "what it is")]
    for name, p in given.items():
        star = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(p["kind"], "")
        default = "" if p["default"] is empty else getattr(p["default"], "__name__", None) or repr(p["default"])
        rows.append(
            (
                code(star + name),
                code(type_name(p["anno"])),
                code(default if len(default) < 60 else "..."),
                rst(p["docment"] or ""),
            )
        )
    if back:
        rows.append(("*returns*", code(type_name(back["anno"])), "", rst(back["docment"] or "")))
    filled = [i for i in range(4) if any(r[i] for r in rows[1:])]  # a column with nothing in it is left out
    lines = [line for r in rows for line in row(*(r[i] for i in filled))]
    return ["", ".. list-table::", "   :header-rows: 1", "   :class: docments", "   :widths: auto", "", *lines, ""]


def process(app, what: str, name: str, obj: object, options, lines: list[str]) -> None:
    "Autodoc's event: escape the docstring, and add the table."
    ours = getattr(obj, "__module__", "") or getattr(getattr(obj, "fget", None), "__module__", "") or ""
    if what == "module":
        ours = name
    if not ours.startswith("saaae"):
        lines[:] = lines[:1] if what in ("data", "attribute") else lines
        return
    lines[:] = [rst(line) for line in lines]
    if what in ("function", "method") or what == "class" and "__init__" in vars(obj):
        lines += table(obj)


def skip(app, what: str, name: str, obj: object, skipped: bool, options) -> bool | None:
    "Autodoc's event: leave out the fields of dataclasses, which the table of the class has."
    return True if what == "class" and not (inspect.isroutine(obj) or isinstance(obj, (property, type))) else None


def signature(app, what: str, name: str, obj: object, options, signature: str, returned: str) -> tuple[str, str] | None:
    "Autodoc's event: a class has the signature of its own `__init__`, not of a base's `__new__`."
    if what != "class" or "__init__" not in vars(obj) or not obj.__module__.startswith("saaae"):
        return None
    own = inspect.signature(obj.__init__)
    return str(own.replace(parameters=list(own.parameters.values())[1:], return_annotation=own.empty)), returned


def setup(app) -> dict:
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-docstring", process)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
