"""Completion of commands and options in a shell.

source <(autotelic completion bash)       # put this line into ~/.bashrc
source <(autotelic completion zsh)        # or ~/.zshrc
"""

import argparse
import importlib

TEMPLATE = """# autotelic: completion for {shell}
{prelude}_autotelic() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" line="${{COMP_WORDS[1]:-}}"
  [ "$line" = train ] && [ "$COMP_CWORD" -gt 2 ] && line="train ${{COMP_WORDS[2]}}"
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{commands}" -- "$word")); return
  fi
  case "$line" in
{cases}
  esac
  [ ${{#COMPREPLY[@]}} -gt 0 ] || COMPREPLY=($(compgen -f -- "$word"))
}}
complete -o filenames -F _autotelic autotelic
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("shell", choices=("bash", "zsh"), help="print the script for this shell")


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    print(script(args.shell), end="")
    return 0


def script(shell: str) -> str:
    """Return the script for a shell; zsh reads bash's through its own adapter."""
    from autotelic.cli.main import COMMANDS
    from autotelic.cli.train_help import option_names
    from autotelic.runs.training_methods import METHODS

    words = {"train": list(METHODS)}
    words |= {f"train {name}": [f"--{each}" for each in option_names(method)] for name, method in METHODS.items()}
    words |= {name: options_of(name) for name in COMMANDS if name != "train"}
    cases = [f'    "{line}") COMPREPLY=($(compgen -W "{" ".join(each)}" -- "$word"));;' for line, each in words.items()]
    prelude = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return TEMPLATE.format(shell=shell, prelude=prelude, commands=" ".join(COMMANDS), cases="\n".join(cases))


def options_of(command: str) -> list[str]:
    """Return a command's options and subcommands."""
    parser = argparse.ArgumentParser(add_help=False)
    importlib.import_module(f"autotelic.cli.{command}").add_arguments(parser)
    words = [word for action in parser._actions for word in action.option_strings if word.startswith("--")]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            words += list(action.choices)
        elif not action.option_strings and action.choices:
            words += list(map(str, action.choices))
    return sorted({"--help", *words})
