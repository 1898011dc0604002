#!/usr/bin/env python3
"""A release build knows no failpoint: none of the names is in it, and all of them are in a debug build.

    release_is_clean.py RELEASE_BINARY DEBUG_BINARY
"""
import re
import sys
from pathlib import Path

NAMES = Path(__file__).resolve().parents[2] / "failpoints" / "src" / "names.rs"


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    release, debug = (Path(path).read_bytes() for path in sys.argv[1:])
    names = re.findall(r'^    "((?:broker|agent)\.[a-z.-]+)",$', NAMES.read_text(), re.MULTILINE)
    words = [*names, "DOCAXIS_FAILPOINT"]
    left = [word for word in words if word.encode() in release]
    # If the search found nothing in a debug build either, it would prove nothing.
    unseen = [word for word in words if word.encode() not in debug]
    for word in left:
        print(f"BAD {sys.argv[1]} knows {word}")
    for word in unseen:
        print(f"BAD {sys.argv[2]} does not know {word}")
    print(f"{len(words)} cases, {len(left) + len(unseen)} bad")
    sys.exit(1 if left or unseen or not names else 0)


if __name__ == "__main__":
    main()
