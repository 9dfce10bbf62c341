"""An argparse parser whose errors are one line, and which names what was meant."""

import argparse
import re
import sys
from collections.abc import Collection
from typing import Any, NoReturn

from ..errors import brief, closest, shown

_NEGATIVE = re.compile(r"-(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$", re.IGNORECASE)


class Parser(argparse.ArgumentParser):
    """Argparse with errors of one line, which looks for unknown options and commands before all else.

    `--top_p` is `--top-p`, and the other way round.
    """

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        self._command_names: Collection[str] = ()
        self._negative_number_matcher = _NEGATIVE  # argparse's own knows no exponent

    def add_subparsers(self, **settings: Any) -> Any:
        commands = super().add_subparsers(**settings)
        # The same dict that add_parser fills.
        self._command_names = commands.choices
        return commands

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, rest = super().parse_known_args(self._checked(sys.argv[1:] if args is None else list(args)), namespace)
        if rest and not self._command_names:  # here, to name this command's help
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return found, rest

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {shown(message)}: see `{self.prog} --help`\n")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if action.option_strings and action.nargs is None and arg_strings == ["--"]:
            return self._get_value(action, "--")  # argparse would take -- as its separator and return an empty list
        return super()._get_values(action, arg_strings)

    def _checked(self, words: list[str]) -> list[str]:
        """Returns the words with each option as it was added; the words after a command are the command's."""
        for i, word in enumerate(words):
            if word == "--":
                break
            if not _is_option(word):
                if self._command_names:
                    if word not in self._command_names:
                        self._unknown("command", word, list(self._command_names))
                    break
                continue
            name, equals, value = word.partition("=")
            known = self._option_string_actions
            if name in known or (not name.startswith("--") and name[:2] in known):
                continue
            spelled = {option.replace("_", "-"): option for option in known}.get(name.replace("_", "-"))
            if spelled is not None:
                words[i] = spelled + equals + value
            # Argparse takes a beginning of a name that fits one name only.
            elif not (name.startswith("--") and any(option.startswith(name) for option in known)):
                place = " before the command" if self._command_names else ""
                self._unknown("option", name, [option for option in known if option.startswith("--")], place)
        return words

    def _unknown(self, kind: str, word: str, names: list[str], place: str = "") -> NoReturn:
        # Without their dashes, which every option shares.
        bare = {name.lstrip("-"): name for name in names}
        close = closest(word.lstrip("-").replace("_", "-"), bare)
        meant = f" (did you mean {bare[close]}?)" if close else ""
        self.error(f"there is no {kind} {brief(word)}{place}{meant}")


def _is_option(word: str) -> bool:
    """Whether a word is an option: no lone dash, no negative number, no text with a space where a name would be.

    Argparse takes `--nmae=two words` for a text.
    """
    name = word.partition("=")[0]
    return name.startswith("-") and word != "-" and " " not in name and not _NEGATIVE.match(word)
