"""Scripts that complete commands, flags and their values in a shell, written from what the commands declare."""

import shlex
from collections.abc import Callable

from zerograd.cli.declared import Setting
from zerograd.cli.flags import flags_of
from zerograd.cli.help import SAID
from zerograd.cli.refused import NAMES, choices_of
from zerograd.cli.table import COMMANDS, EVERYWHERE, FILES

USE = """\
usage: zerograd completion {bash,zsh,fish}
Print a script that completes commands, flags and their values. In the file that your shell reads at its start:

  bash  ~/.bashrc                     eval "$(zerograd completion bash)"
  zsh   ~/.zshrc, behind compinit     eval "$(zerograd completion zsh)"
  fish  ~/.config/fish/config.fish    zerograd completion fish | source"""
BASH = """\
_zerograd() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="" command="${{COMP_WORDS[1]}}" flags="" i
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=( $(compgen -W "{commands}" -- "$word") )
        return
    fi
    for (( i = COMP_CWORD - 1; i > 1; i-- )); do  # a flag may have several values
        case "${{COMP_WORDS[i]}}" in --*) before="${{COMP_WORDS[i]}}"; break ;; esac
    done
    case "$word" in -*) before="" ;; esac
    case "$command $before" in
{values}
        {files}) COMPREPLY=( $(compgen -f -- "$word") ); return ;;
    esac
    case "$command" in
{flags}
    esac
    COMPREPLY=( $(compgen -W "$flags" -- "$word") )
}}
complete -o filenames -F _zerograd zerograd
"""


def values_of(setting: Setting) -> tuple[str, ...]:
    """What may stand behind a flag; () where anything may."""
    return NAMES.get(setting.name) or choices_of(setting)


def bash() -> str:
    """The script for bash."""
    words = {name: flags_of(command) for name, command in COMMANDS.items()}
    values = [
        f'        "{name} --{flag}") COMPREPLY=( $(compgen -W "{" ".join(found)}" -- "$word") ); return ;;'
        for name, flags in words.items()
        for flag, setting in flags.items()
        if (found := values_of(setting))
    ]
    values.append('        "completion "*) COMPREPLY=( $(compgen -W "bash zsh fish" -- "$word") ); return ;;')
    values.append('        "report "*) COMPREPLY=( $(compgen -d -- "$word") ); return ;;')
    flags = [
        f'        {name}) flags="{" ".join(f"--{flag}" for flag in (*known, *EVERYWHERE))}" ;;'
        for name, known in words.items()
    ]
    return BASH.format(
        commands=" ".join((*COMMANDS, "completion")), values="\n".join(values), flags="\n".join(flags),
        files="|".join(f'*" --{name}"' for name in FILES),
    )  # fmt: skip


def zsh() -> str:
    """The script for zsh, which runs bash's."""
    return f"autoload -U +X bashcompinit && bashcompinit\n{bash()}"


def fish() -> str:
    """The script for fish."""
    lines = ["complete -c zerograd -f"]
    for name, command in COMMANDS.items():
        lines.append(f"complete -c zerograd -n __fish_use_subcommand -a {name} -d {shlex.quote(command.about)}")
        inside = f"complete -c zerograd -n '__fish_seen_subcommand_from {name}'"
        for flag, setting in flags_of(command).items():
            found = values_of(setting)
            takes = " -r -F" if flag in FILES else "" if setting.kind == "bool" else " -x"
            takes += f" -a {shlex.quote(chr(32).join(found))}" if found else ""
            about = SAID.get(flag, setting.help).partition(". ")[0].removesuffix(".")
            lines.append(f"{inside} -l {flag}{takes} -d {shlex.quote(about)}")
        lines += [f"{inside} -l {flag} -d {shlex.quote(about)}" for flag, about in EVERYWHERE.items()]
    lines.append("complete -c zerograd -n __fish_use_subcommand -a completion -d 'A script that completes'")
    lines.append("complete -c zerograd -n '__fish_seen_subcommand_from completion' -a 'bash zsh fish'")
    return "\n".join(lines)


SHELLS: dict[str, Callable[[], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
