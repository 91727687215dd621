import unittest

import main


class Main(unittest.TestCase):
    def test_greeting(self):
        self.assertTrue(main.greeting().endswith("staging"))
