"""Items of an image's Env: what Docker gives as it is and /etc/environment carries, and what it does not."""

CARRIED = [
    f"T_A={value}"
    for value in (
        "plain", "", " ", " lead", "trail ", "two  words", "tab\t", "a=b=c", "X=Y", "#no comment",
        "back\\slash", '\\"quoted\\"', "\\'quoted\\'", "\\both\\", "\\", "\\\\", '\\"', "'\\", '"\\',
        "\\\\server\\share\\", "\\a'  ", '\\u@\\h:\\w\\$ "', '"\\"', "\\${X}*$'a'",
        '"quoted whole"', "'quoted whole'", '""', "''", '"', "'", '"""', '"\'', '\'"', '""twice""',
        "'\"both\"'",
        '"a" "b"', '"a"b', 'a"b"', '"open', 'close"', "it's", '"trail" ', '"trail"\t ', ' "lead"',
        '"x"\r', '"x"\u2003',
        "${HOME}", "${X}", "${NOBODY}", "$HOME", "$${X}", "${X", "{X}", "${1}", "${}", "${A-b}",
        "${X}${X}", "'${X}'",
        '"${X}"', "a${X}b ${HOME} c", "${${X}}", "$(id)", "`id`", "%s%n", "&", "\\1", "\\n", "\r",
        "a\rb", "\f", "a\fT_B=1",
        "a\vT_B=1", "a\x1cT_B=1", "a\x1dT_B=1", "a\x1eT_B=1", "a\x85T_B=1", "a\u2028T_B=1",
        "a\u2029T_B=1", "\ufeffx",
        "\x01\x1b[31m\x7f", "\u202eabc", "caf\u00e9 \U0001f600", '"caf\u00e9"', "a;b|c>d", "*",
        "~", "!x",
        "x" * 20_000, "${X}" * 3000,
    )
]  # fmt: skip

LOST = ["A-B=1", "A.B=1", "1A=1", " A=1", "\u00c9=1", "A B=1", "LINES=one\nTWO=2", "T_LAST=x\n", "ENROOT_X=1"]
