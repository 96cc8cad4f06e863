"""What the `test` task of the review runs, in its sandbox: a handful of real unit tests."""

import email
import json
import logging
import unittest
from http import HTTPStatus


class Json(unittest.TestCase):
    def test_round_trip(self) -> None:
        value = {"a": [1, 2.5, None, True], "ü": "✓"}
        self.assertEqual(json.loads(json.dumps(value)), value)

    def test_errors_name_the_place(self) -> None:
        with self.assertRaisesRegex(json.JSONDecodeError, r"line 1 column 2"):
            json.loads("[")


class Email(unittest.TestCase):
    def test_headers(self) -> None:
        message = email.message_from_string("Subject: hello\n\nbody")
        self.assertEqual(message["subject"], "hello")


class Http(unittest.TestCase):
    def test_phrases(self) -> None:
        self.assertEqual(HTTPStatus(404).phrase, "Not Found")


class Logging(unittest.TestCase):
    def test_levels(self) -> None:
        with self.assertLogs("review", logging.WARNING) as seen:
            logging.getLogger("review").warning("seen")
        self.assertEqual(seen.output, ["WARNING:review:seen"])


if __name__ == "__main__":
    unittest.main()
