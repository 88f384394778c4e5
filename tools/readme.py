"""Write README.md, and the figures it shows, from nbs/index.ipynb; `--check` fails when they are out of date.

Hidden cells stay hidden, links to chapters and images lead into `nbs/`, and figures lie in `index_files/`.
"""
import re
import sys
from base64 import b64decode

from nbdev.config import get_config
from nbdev.process import NBProcessor

HIDDEN = {"hide", "export", "default_exp"}


def text_of(value): return value if isinstance(value, str) else "".join(value)


def outputs(cell, options, figures):
    "The outputs of a cell as Markdown: Markdown as it is, figures by reference into `figures`, the rest as plain text."
    for n, output in enumerate(cell.get("outputs", [])):
        data = output.get("data", {"text/plain": output.get("text", "")})
        if "text/markdown" in data: yield text_of(data["text/markdown"]).strip()
        elif "image/png" in data:
            name = f"index_files/{cell.id}-{n}.png"
            figures[name] = b64decode(text_of(data["image/png"]))
            yield f"![{options.get('fig-alt', '')}]({name})"
        else: yield "\n".join(f"    {line}".rstrip() for line in text_of(data["text/plain"]).rstrip().split("\n"))


def readme():
    "README.md's text, and its figures as bytes by path."
    config, parts, figures = get_config(), [], {}
    for cell in NBProcessor(config.nbs_path/config.readme_nb).nb.cells:
        if cell.cell_type == "markdown":
            parts.append(re.sub(r"\]\((?!https?:|#|mailto:)", f"]({config.nbs_path.name}/", cell.source.strip()))
        if cell.cell_type != "code" or HIDDEN & cell.directives_.keys(): continue
        options = {name.rstrip(":"): " ".join(value) for name, value in cell.directives_.items()}
        if options.get("include") == "false": continue
        code = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M).strip()
        if code and options.get("echo") != "false": parts.append(f"```python\n{code}\n```")
        if options.get("output") != "false": parts += outputs(cell, options, figures)
    return "\n\n".join(parts) + "\n", figures


def main():
    root, (text, figures) = get_config().config_path, readme()
    files = {"README.md": text.encode(), **figures}
    stale = [name for name, data in files.items() if not (root/name).exists() or (root/name).read_bytes() != data]
    unused = [path for path in root.glob("index_files/*") if path.relative_to(root).as_posix() not in files]
    if "--check" in sys.argv[1:]:
        if stale or unused: sys.exit(f"out of date: {stale + [path.name for path in unused]}; run `python tools/readme.py`")
        return
    for path in unused: path.unlink()
    for name in stale:
        (root/name).parent.mkdir(exist_ok=True)
        (root/name).write_bytes(files[name])


if __name__ == "__main__": main()
