"""Check digits of cards, accounts and national ids: what tells them from order numbers.

What lives here: one function a scheme, each with its source. What does not: how the numbers are written in a text
(`data.personal`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "BY": 28,
    "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18,
    "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22,
    "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LC": 32, "LI": 21, "LT": 20,
    "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MR": 27, "MT": 31, "MU": 30, "NL": 18,
    "NO": 15, "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SC": 31, "SE": 24,
    "SI": 19, "SK": 24, "SM": 27, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24,
    "XK": 20,
}  # fmt: skip
"""Country -> length of its IBAN (SWIFT IBAN registry, release 99)."""


def luhn_holds(digits: str) -> bool:
    """Whether the last digit is the Luhn check digit of the others (ISO/IEC 7812-1)."""
    total = 0
    for position, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if position % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def iban_holds(text: str) -> bool:
    """Whether a compact IBAN in capitals has the length of its country and the remainder 1 modulo 97 (ISO 13616)."""
    if IBAN_LENGTHS.get(text[:2]) != len(text):
        return False
    return int("".join(str(int(character, 36)) for character in text[4:] + text[:4])) % 97 == 1


def weighted_sum(digits: str, weights: Sequence[int]) -> int:
    """Return the sum of digits times weights; further digits are left out."""
    return sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=False))


def ssn_holds(digits: str) -> bool:
    """US social security number: no area 000, 666 or 9xx, no group 00, no serial 0000 (SSA)."""
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    return area not in ("000", "666") and area[0] != "9" and group != "00" and serial != "0000"


def nhs_holds(digits: str) -> bool:
    """UK NHS number: weights 10 to 2, check digit 11 minus the remainder modulo 11 (NHS data dictionary)."""
    check = 11 - weighted_sum(digits[:9], range(10, 1, -1)) % 11
    return check != 10 and check % 11 == int(digits[9])


def dni_holds(text: str) -> bool:
    """Spanish DNI or NIE: letter by the number modulo 23 (Ministerio del Interior)."""
    number = text[:-1].translate(str.maketrans("XYZ", "012"))
    return text[-1] == "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23]


def codice_fiscale_holds(text: str) -> bool:
    """Italian codice fiscale: check letter over odd and even places (DM 23/12/1976)."""
    odd = dict(zip("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", _CODICE_ODD, strict=True))
    total = sum(odd[c] if i % 2 == 0 else int(c, 36) - (10 if c.isalpha() else 0) for i, c in enumerate(text[:15]))
    return chr(65 + total % 26) == text[15]


_CODICE_ODD = (
    *(1, 0, 5, 7, 9, 13, 15, 17, 19, 21),
    *(1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23),
)


def nir_holds(digits: str) -> bool:
    """French NIR of 15 places: key is 97 minus the number modulo 97; Corsica's 2A and 2B count 19 and 18 (INSEE)."""
    digits = digits[:5] + {"2A": "19", "2B": "18"}.get(digits[5:7], digits[5:7]) + digits[7:]
    return 97 - int(digits[:13]) % 97 == int(digits[13:])


def steuer_id_holds(digits: str) -> bool:
    """German tax id: ISO 7064 MOD 11,10, first digit not 0 (BZSt)."""
    return digits[0] != "0" and oib_holds(digits)


def oib_holds(digits: str) -> bool:
    """Croatian OIB: ISO 7064 MOD 11,10."""
    product = 10
    for digit in digits[:10]:
        total = (int(digit) + product) % 10 or 10
        product = 2 * total % 11
    return (11 - product) % 10 == int(digits[10])


def bsn_holds(digits: str) -> bool:
    """Dutch BSN: weights 9 to 2 and -1, divisible by 11."""
    return weighted_sum(digits, (9, 8, 7, 6, 5, 4, 3, 2, -1)) % 11 == 0 and len(set(digits)) > 1


def rijksregister_holds(digits: str) -> bool:
    """Belgian national number: 97 minus the first nine digits modulo 97, a 2 before them from the year 2000 on."""
    check = int(digits[9:])
    return any(97 - int(prefix + digits[:9]) % 97 == check for prefix in ("", "2"))


def pesel_holds(digits: str) -> bool:
    """Polish PESEL: weights 1 3 7 9."""
    return (10 - weighted_sum(digits[:10], (1, 3, 7, 9, 1, 3, 7, 9, 1, 3)) % 10) % 10 == int(digits[10])


def cpf_holds(digits: str) -> bool:
    """Brazilian CPF: two check digits modulo 11."""
    if len(set(digits)) == 1:
        return False
    first = weighted_sum(digits[:9], range(10, 1, -1)) * 10 % 11 % 10
    second = weighted_sum(digits[:10], range(11, 1, -1)) * 10 % 11 % 10
    return digits[9:] == f"{first}{second}"


_VERHOEFF_TURN = (
    "0123456789", "1234067895", "2340178956", "3401289567", "4012395678",
    "5987604321", "6598710432", "7659821043", "8765932104", "9876543210",
)  # fmt: skip
_VERHOEFF_PLACE = (
    "0123456789", "1576283094", "5803796142", "8916043527", "9453126870", "4286573901", "2793806415", "7046913258",
)  # fmt: skip


def verhoeff_holds(digits: str) -> bool:
    """Verhoeff's check digit, as in Aadhaar numbers."""
    check = 0
    for place, digit in enumerate(reversed(digits)):
        check = int(_VERHOEFF_TURN[check][int(_VERHOEFF_PLACE[place % 8][int(digit)])])
    return check == 0


def hetu_holds(text: str) -> bool:
    """Finnish personal code: check character by the nine digits modulo 31."""
    return "0123456789ABCDEFHJKLMNPRSTUVWXY"[int(text[:6] + text[7:10]) % 31] == text[10]


def nric_holds(text: str) -> bool:
    """Singapore NRIC or FIN: weighted sum modulo 11, letters by series."""
    total = weighted_sum(text[1:8], (2, 7, 6, 5, 4, 3, 2)) + (4 if text[0] in "TG" else 0)
    letters = {"S": "JZIHGFEDCBA", "T": "JZIHGFEDCBA", "F": "XWUTRQPNMLK", "G": "XWUTRQPNMLK"}
    return text[8] == letters[text[0]][total % 11]


def china_id_holds(text: str) -> bool:
    """Chinese resident id: ISO 7064 MOD 11-2 (GB 11643-1999)."""
    total = weighted_sum(text[:17], (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2))
    return "10X98765432"[total % 11] == text[17].upper()


def ean13_holds(digits: str) -> bool:
    """Check digit of EAN-13, as in the Swiss AHV number: weights 1 3."""
    return weighted_sum(digits, (1, 3) * 6 + (1,)) % 10 == 0


def rrn_holds(digits: str) -> bool:
    """South Korean resident number: weights 2 to 9 and 2 to 5, 11 minus the remainder modulo 11."""
    return (11 - weighted_sum(digits[:12], (*range(2, 10), *range(2, 6))) % 11) % 10 == int(digits[12])


def rodne_cislo_holds(digits: str) -> bool:
    """Czech and Slovak birth number: divisible by 11, a month (plus 20, 50 or 70) in the middle."""
    return int(digits) % 11 == 0 and 1 <= int(digits[2:4]) % 50 % 20 <= 12 and 1 <= int(digits[4:6]) <= 31


def rut_holds(text: str) -> bool:
    """Chilean RUT: weights 2 to 7 from the right, 11 minus the remainder modulo 11."""
    check = 11 - weighted_sum(text[-2::-1], (2, 3, 4, 5, 6, 7, 2, 3)) % 11
    return text[-1] == {11: "0", 10: "K"}.get(check, str(check))


def cuit_holds(digits: str) -> bool:
    """Argentine CUIT and CUIL: weights 5 4 3 2 7 6 5 4 3 2."""
    return (11 - weighted_sum(digits[:10], (5, 4, 3, 2, 7, 6, 5, 4, 3, 2)) % 11) % 11 == int(digits[10])


def hkid_holds(text: str) -> bool:
    """Hong Kong identity card `A123456(3)`: weights 9 to 2, divisible by 11 with the check digit."""
    body, check = text.strip(")").split("(")
    values = [36, *(int(sign, 36) for sign in body)][-8:]
    total = sum(value * weight for value, weight in zip(values, range(9, 1, -1), strict=True))
    return (total + int(check, 16)) % 11 == 0


def taiwan_id_holds(text: str) -> bool:
    """Taiwanese id: the letter as a number of two digits, weights 1 9 8 to 1 and 1."""
    number = 10 + "ABCDEFGHJKLMNPQRSTUVXYWZIO".index(text[0])
    return weighted_sum(f"{number}{text[1:]}", (1, 9, 8, 7, 6, 5, 4, 3, 2, 1, 1)) % 10 == 0


def pps_holds(text: str) -> bool:
    """Irish PPS number: weights 8 to 2, nine times the second letter, modulo 23."""
    second = ord(text[8]) - 64 if len(text) == 9 else 0
    return (weighted_sum(text[:7], range(8, 1, -1)) + 9 * second) % 23 == (ord(text[7]) - 64) % 23


def german_pension_holds(text: str) -> bool:
    """German insurance number `15 070649 C 103`: digit sums under the weights 2 1 2 5 7 1 2 1 2 1 2 1."""
    digits = f"{text[:8]}{ord(text[8]) - 64:02d}{text[9:11]}"
    products = [int(digit) * weight for digit, weight in zip(digits, (2, 1, 2, 5, 7, 1, 2, 1, 2, 1, 2, 1), strict=True)]
    return sum(product // 10 + product % 10 for product in products) % 10 == int(text[11])


def tfn_holds(digits: str) -> bool:
    """Australian tax file number: weights 1 4 3 7 5 8 6 9 10, divisible by 11."""
    return weighted_sum(digits, (1, 4, 3, 7, 5, 8, 6, 9, 10)) % 11 == 0


def medicare_holds(digits: str) -> bool:
    """Australian Medicare number: weights 1 3 7 9, the remainder modulo 10 is the ninth digit."""
    return digits[0] in "23456" and weighted_sum(digits[:8], (1, 3, 7, 9, 1, 3, 7, 9)) % 10 == int(digits[8])


def nif_holds(digits: str) -> bool:
    """Portuguese NIF: weights 9 to 2, 11 minus the remainder modulo 11, 0 for 10 and 11."""
    check = 11 - weighted_sum(digits[:8], range(9, 1, -1)) % 11
    return (0 if check > 9 else check) == int(digits[8])


def svnr_holds(digits: str) -> bool:
    """Austrian insurance number: weights 3 7 9 0 5 8 4 2 1 6, the remainder modulo 11 is the fourth digit."""
    return weighted_sum(digits, (3, 7, 9, 0, 5, 8, 4, 2, 1, 6)) % 11 == int(digits[3])


def egn_holds(digits: str) -> bool:
    """Bulgarian EGN: weights 2 4 8 5 10 9 7 3 6."""
    return weighted_sum(digits[:9], (2, 4, 8, 5, 10, 9, 7, 3, 6)) % 11 % 10 == int(digits[9])


def kimlik_holds(digits: str) -> bool:
    """Turkish id: the tenth digit from odd and even places, the eleventh from the sum of all."""
    odd, even = sum(map(int, digits[0:9:2])), sum(map(int, digits[1:8:2]))
    holds = (7 * odd - even) % 10 == int(digits[9]) and sum(map(int, digits[:10])) % 10 == int(digits[10])
    return digits[0] != "0" and holds


def fodselsnummer_holds(digits: str) -> bool:
    """Norwegian birth number: two check digits modulo 11."""
    first = weighted_sum(digits, (3, 7, 6, 1, 8, 9, 4, 5, 2, 1))
    return first % 11 == 0 and weighted_sum(digits, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1)) % 11 == 0


def my_number_holds(digits: str) -> bool:
    """Japanese My Number: weights 6 to 2 and 7 to 2, 11 minus the remainder modulo 11, 0 where that is 0 or 1."""
    left = weighted_sum(digits[:11], (6, 5, 4, 3, 2, 7, 6, 5, 4, 3, 2)) % 11
    return (0 if left < 2 else 11 - left) == int(digits[11])


def cnp_holds(digits: str) -> bool:
    """Romanian CNP: weights 2 7 9 1 4 6 3 5 8 2 7 9, the remainder modulo 11, 1 for 10."""
    left = weighted_sum(digits[:12], (2, 7, 9, 1, 4, 6, 3, 5, 8, 2, 7, 9)) % 11
    return digits[0] != "0" and (1 if left == 10 else left) == int(digits[12])


def thai_id_holds(digits: str) -> bool:
    """Thai id: weights 13 to 2, 11 minus the remainder modulo 11."""
    return (11 - weighted_sum(digits[:12], range(13, 1, -1)) % 11) % 10 == int(digits[12])


def routing_holds(digits: str) -> bool:
    """US bank routing number: weights 3 7 1 (ABA)."""
    return weighted_sum(digits, (3, 7, 1, 3, 7, 1, 3, 7, 1)) % 10 == 0 and digits != "000000000"


_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def base58check_holds(text: str) -> bool:
    """Bitcoin address of the old kind: last four bytes are the double sha256 of the others."""
    number = 0
    for character in text:
        if character not in _BASE58:
            return False
        number = number * 58 + _BASE58.index(character)
    try:
        data = number.to_bytes(25, "big")
    except OverflowError:
        return False
    return hashlib.sha256(hashlib.sha256(data[:21]).digest()).digest()[:4] == data[21:]
