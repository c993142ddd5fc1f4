"""A row of the table of providers as text (pure)."""

import orjson

from proxy.protocol.provider import InputFormat, Provider
from proxy.protocol.providers import GENERIC


def described(row: Provider) -> str:
    facts = {
        "auth": row.auth,
        "input": ", ".join(form.value for form in InputFormat if form in row.inputs),
        "key": ", ".join(sorted(row.key)),
        "neutral": ", ".join(sorted(row.neutral)),
        "headers": f"neutral: {', '.join(sorted(row.neutral_headers))}" if row.neutral_headers else "",
        "encoding": ", ".join(_encodings(row)),
        "cross-item": ", ".join(
            f"{k} other than {orjson.dumps(v).decode()}" for k, v in sorted(row.cross_item.items())
        ),
        "fused": ", ".join(sorted(set(row.fused_models) - set(GENERIC.fused_models))),
        "multivector": ", ".join(sorted(set(row.multi_vector_models) - set(GENERIC.multi_vector_models))),
        "limits": str(row.limits),
    }
    where = "any base URL, " + row.path if row.base_url is None else row.base_url + row.path
    lines = [f"{row.name:<12}{where}", *(f"  {label:<12}{text}" for label, text in facts.items() if text)]
    return "\n".join(lines)


def _encodings(row: Provider) -> list[str]:
    chosen = [f"{name} ({' '.join(sorted(values))})" for name, values in sorted(row.encoding.items())]
    return chosen + [f"{name} ({value})" for name, value in sorted(row.fixed.items())]
