"""Names and patterns by which the rules for insecure Python know what is dangerous, and what is not."""

from __future__ import annotations

import re

SHELL = {
    "os.system",
    "os.popen",
    "os.popen2",
    "os.popen3",
    "os.popen4",
    "popen2.popen2",
    "popen2.popen3",
    "popen2.Popen3",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "asyncio.create_subprocess_shell",
}
PROGRAMS = {
    "subprocess.run",
    "subprocess.call",
    "subprocess.check_call",
    "subprocess.check_output",
    "subprocess.Popen",
}
DESERIALISE = {
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "dill.load",
    "dill.loads",
    "cloudpickle.load",
    "cloudpickle.loads",
    "joblib.load",
    "shelve.open",
    "shelve.DbfilenameShelf",
    "marshal.load",
    "marshal.loads",
    "jsonpickle.decode",
    "jsonpickle.loads",
    "jsonpickle.unpickler.decode",
    "unpickler.decode",
    "pandas.read_pickle",
    "yaml.unsafe_load",
    "yaml.unsafe_load_all",
    "yaml.full_load",
}
WEAK_HASH = {
    "hashlib.md5",
    "hashlib.sha1",
    "hashlib.md4",
    "md5.new",
    "md5.md5",
    "sha.new",
    "Crypto.Hash.MD5.new",
    "Crypto.Hash.SHA1.new",
    "Crypto.Hash.SHA.new",
    "Cryptodome.Hash.MD5.new",
    "Cryptodome.Hash.SHA1.new",
    "cryptography.hazmat.primitives.hashes.MD5",
    "cryptography.hazmat.primitives.hashes.SHA1",
    "passlib.hash.md5_crypt.hash",
    "passlib.hash.md5_crypt.encrypt",
}
WEAK_CIPHER = {
    "Crypto.Cipher.DES.new",
    "Crypto.Cipher.DES3.new",
    "Crypto.Cipher.ARC4.new",
    "Crypto.Cipher.ARC2.new",
    "Crypto.Cipher.Blowfish.new",
    "cryptography.hazmat.primitives.ciphers.algorithms.ARC4",
    "cryptography.hazmat.primitives.ciphers.algorithms.Blowfish",
    "cryptography.hazmat.primitives.ciphers.algorithms.TripleDES",
    "cryptography.hazmat.primitives.ciphers.modes.ECB",
}
RANDOM = {
    "random",
    "randint",
    "randrange",
    "choice",
    "choices",
    "sample",
    "shuffle",
    "uniform",
    "getrandbits",
    "randbytes",
    "triangular",
    "gauss",
    "Random",
    "seed",
}
NO_CERTIFICATE = {
    "ssl._create_unverified_context",
    "ssl._create_stdlib_context",
    "paramiko.AutoAddPolicy",
    "paramiko.WarningPolicy",
    "paramiko.client.AutoAddPolicy",
    "paramiko.client.WarningPolicy",
}
# Names that a fragment uses without showing where they come from, and that mean one thing nearly always.
BARE = {
    "system": "os.system",
    "popen": "os.popen",
    "getoutput": "subprocess.getoutput",
    "getstatusoutput": "subprocess.getstatusoutput",
    "md5": "hashlib.md5",
    "sha1": "hashlib.sha1",
    "randint": "random.randint",
    "randrange": "random.randrange",
    "mktemp": "tempfile.mktemp",
    "mark_safe": "django.utils.safestring.mark_safe",
    "Markup": "markupsafe.Markup",
    "render_template_string": "flask.render_template_string",
    "send_file": "flask.send_file",
}
FILES = {
    "open",
    "io.open",
    "codecs.open",
    "os.remove",
    "os.unlink",
    "os.rename",
    "os.rmdir",
    "os.listdir",
    "shutil.rmtree",
    "shutil.copy",
    "shutil.copyfile",
    "shutil.move",
    "flask.send_file",
    "static_file",
    "bottle.static_file",
    "FileResponse",
}
SECRET_CONTEXT = re.compile(
    r"passw|passphrase|pwd|secret|token|salt|nonce|otp|session|csrf|captcha|key|auth|crypt|verif|reset|invit|voucher|"
    r"coupon|licen[sc]e|(^|_)(pin|code|iv)($|_)",
    re.IGNORECASE,
)
SECRET_NAME = re.compile(
    r"passw(or)?d|passphrase|(^|_)(pwd|passwd|pass|secret|token|credentials?)($|_)|secret|api_?key|access_?key|"
    r"private_?key|secret_?key|auth_?token|auth_?key|signing_?key|encryption_?key|(^|_)pw($|_)",
    re.IGNORECASE,
)
NO_SECRET_NAME = re.compile(
    r"(url|uri|path|file|filename|field|name|prompt|label|header|type|length|len|min|max|regex|pattern|re|format|"
    r"message|msg|error|help|title|column|id|index|input|env|var|count|algorithm|hasher|validators?|param|arg|"
    r"endpoint|form|page|template|prefix|suffix|expires?|expiry|ttl|timeout)$",
    re.IGNORECASE,
)
PLACEHOLDER = re.compile(
    r"^(|x+|\*+|\.+|-+|<.*>|\$\{?.*|\{.*\}|%.*|none|null|true|false|.*(your|change|example|placeholder|redacted|todo)"
    r".*|password|passwd|secret|token|api[-_]?key|username)$",
    re.IGNORECASE,
)
SECRET_TEXT = (
    ("CWE-312", "private-key", re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----")),
    ("CWE-798", "google-key", re.compile(r"AIza[0-9A-Za-z_-]{35}")),
    ("CWE-798", "google-token", re.compile(r"ya29\.[0-9A-Za-z_-]{20,}")),
    ("CWE-798", "aws-key", re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b")),
    ("CWE-798", "github-token", re.compile(r"\bgh[pousr]_[0-9A-Za-z]{36}\b")),
    ("CWE-798", "slack-token", re.compile(r"\bxox[abprs]-[0-9A-Za-z-]{10,}")),
    ("CWE-798", "stripe-key", re.compile(r"\bsk_live_[0-9A-Za-z]{16,}")),
)
SQL = re.compile(
    r"^\W*(with\s+\w+\s+as\s*\(\s*)?(select\s+.*?\bfrom\b|select\b|insert\s+(ignore\s+)?into\b|replace\s+into\b|update\b.+\bset\b|"
    r"delete\s+from\b|drop\s+(table|database|user|view|index)\b|create\s+(table|database|user|view|index)\b|"
    r"alter\s+(table|user|database)\b|truncate\b|grant\b|show\s+(columns|tables|create)\b|call\s|exec\s|use\s|pragma\s|"
    r"explain\b|describe\b|where\s|values\s*\()",
    re.IGNORECASE | re.DOTALL,
)
# The text before a hole that names a table or column: no placeholder of a database can stand there.
IDENTIFIER = re.compile(
    r"(\b(from|into|update|table|join|exists|by|select|columns|database|truncate|index)\s+|[`.\"\[])$", re.I
)
RUNS_SQL = re.compile(
    r"exec|query|quer|sql|cursor|select|fetch|run|read|raw|all|one|db|commit|insert|update|delete", re.I
)
RUNS_COMMAND = re.compile(
    r"ssh|(^|_)(cmds?|cli|shell|sh|exec|execute|system|popen|command|commands|getoutput|call|run|check_output|spawn|"
    r"eapi|send|eql|sudo)(_|$)|exec_command|execute|Popen|run_",
    re.IGNORECASE,
)
QUIET = re.compile(
    r"^(print|debug|info|warn|warning|error|exception|critical|log|msg|raise|len|str|repr|format|append|join|add|"
    r"write|encode|decode|strip|split|search|match|sub|compile|_|[A-Z]\w*(Error|Exception|Warning))$"
)
REQUEST = re.compile(
    r"(^|\.)(request|req)\.(args|form|values|GET|POST|params|query|query_params|cookies|files|json|data|headers|"
    r"get_json|arguments|path_params|match_info|get|vars)\b|get_argument|^input$|sys\.argv|^raw_input$"
)
ESCAPES = re.compile(
    r"escape|sanitiz|sanitis|clean|bleach|quote|secure_filename|safe_join|basename|realpath|abspath|normpath|resolve|"
    r"int$|float$|len$|strip_tags|validate|is_relative_to|antixss",
    re.IGNORECASE,
)
CHECKS_PATH = re.compile(
    r"secure_filename|safe_join|basename|realpath|abspath|normpath|commonpath|commonprefix|is_relative_to|startswith|"
    r"safe|saniti|valid|check",
    re.IGNORECASE,
)
