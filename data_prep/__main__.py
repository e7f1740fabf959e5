"Run a pipeline by name."

import difflib, importlib, sys
from pathlib import Path

names = sorted(p.stem for p in Path(__file__).parent.glob('[a-z]*.py'))


def main(argv):
    if len(argv) != 1 or argv[0] not in names:
        near = difflib.get_close_matches(argv[0], names, 1) if argv else []
        print(
            f'usage: python -m data_prep NAME, one of: {", ".join(names)}'
            + (f' (did you mean {near[0]}?)' if near else ''),
            file=sys.stderr,
        )
        return 2
    try:
        importlib.import_module(f'data_prep.{argv[0]}').main()
    except (ImportError, OSError, RuntimeError) as e:
        print(f'data_prep {argv[0]}: {e}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
