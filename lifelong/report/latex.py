"""Tables as LaTeX, with all characters escaped."""

from __future__ import annotations

import re
import unicodedata

from lifelong.report.document import Code, Table, Words, joined, marked, numbers

_TEX = {"\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
        "|": r"\textbar{}", '"': r"\char34{}", "'": r"\textquotesingle{}", "`": r"\textasciigrave{}",
        "±": r"$\pm$", "–": "--", "—": "---", "…": r"\dots{}", "−": "$-$", "≈": r"$\approx$", "≠": r"$\neq$",
        "≤": r"$\leq$", "≥": r"$\geq$", "∞": r"$\infty$", "×": r"$\times$", "·": r"$\cdot$", "√": r"$\surd$",
        "→": r"$\rightarrow$", "∈": r"$\in$", "°": r"$^\circ$", "¹": "$^1$", "²": "$^2$", "³": "$^3$", "½": "$1/2$",
        "‘": r"\textquoteleft{}", "’": r"\textquoteright{}", "“": r"\textquotedblleft{}", "”": r"\textquotedblright{}",
        "ß": r"\ss{}", "ø": r"\o{}", "Ø": r"\O{}", "æ": r"\ae{}", "Æ": r"\AE{}", "œ": r"\oe{}", "Œ": r"\OE{}",
        "ł": r"\l{}", "Ł": r"\L{}", "ı": r"\i{}", "\u00a0": "~", "\n": " ", "\t": " ", "\0": "{}"}
_GREEK = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu",
          "xi", "omicron", "pi", "rho", "varsigma", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega")
_TEX |= {chr(ord("α") + i): rf"$\{name}$" for i, name in enumerate(_GREEK) if name != "omicron"}
_TEX |= {letter: rf"$\{_GREEK[ord(letter) - ord('Α')].capitalize()}$" for letter in "ΓΔΘΛΞΠΣΥΦΨΩ"}
_TEX |= {"ο": "o", "µ": r"$\mu$"}
_TEX |= dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΧ", "ABEZHIKMNOPTX", strict=True))
_ACCENTS = dict(zip("\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327", "`'^~=u.\"rHvc",
                    strict=True))  # combining characters, which follow their letter


def latex(table: Table) -> str:
    """A table as LaTeX; comments at the top name the packages and fonts that it needs.

    Text is escaped. Accents, Greek letters and symbols become commands; other non-ASCII characters are kept. For tables
    that are too wide, use the packages adjustbox or rotating.
    """
    kinds = "".join("r" if numeric else "l" for numeric in numbers(table))
    lines = [" & ".join(_tex((column.title,)) for column in table.columns)]
    lines += [" & ".join(marked(_tex(one.text), one.mark, r"\textbf{", "}", r"~$\approx$") for one in row)
              for row in table.rows]
    head, *body = [line + r" \\" for line in lines]
    caption = _tex(joined([table.caption, table.note, *table.definitions]))
    text = "\n".join([r"\begin{table}", r"\centering", rf"\caption{{{caption}}}", rf"\label{{tab:{table.name}}}",
                      rf"\begin{{tabular}}{{{kinds}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule",
                      r"\end{tabular}", r"\end{table}"]) + "\n"
    needed = ["% \\usepackage{booktabs, textcomp}\n"]
    if beyond := "".join(sorted(set(re.sub(r"[ -~\n]", "", text)))):
        needed.append(f"% xelatex or lualatex, with a font that has {beyond}\n")
    return "".join(needed) + text


def _tex(text: Words) -> str:
    return "".join((rf"\texttt{{{escaped}}}" if isinstance(piece, Code) else escaped)
                   for piece in text for escaped in ["".join(map(_tex_letter, _apart(piece)))])


def _apart(text: str) -> str:
    """The text with accents composed, and with consecutive hyphens separated, which LaTeX would turn into a dash."""
    return re.sub("-(?=-)", "-\0", unicodedata.normalize("NFC", text.replace("\0", "")))


def _tex_letter(letter: str) -> str:
    if letter in _TEX or letter.isascii():
        return _TEX.get(letter, letter if letter.isprintable() else "")
    parts = unicodedata.normalize("NFD", letter)
    if len(parts) == 2 and parts[0].isascii() and parts[1] in _ACCENTS:
        base = rf"\{parts[0]}" if parts[0] in "ij" else parts[0]
        return rf"\{_ACCENTS[parts[1]]}{{{base}}}"
    return letter
