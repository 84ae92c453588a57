"""Prompts that give a text and ask for a small change of it, so that most of the answer is a repetition."""

CODE = """\
class Account:
    def __init__(self, owner, balance=0):
        self.owner = owner
        self.balance = balance

    def deposit(self, amount):
        if amount <= 0:
            raise ValueError("amount must be positive")
        self.balance += amount
        return self.balance

    def withdraw(self, amount):
        if amount > self.balance:
            raise ValueError("not enough money")
        self.balance -= amount
        return self.balance
"""
CONFIG = """\
services:
  web:
    image: registry.example.org/shop/web:1.4.2
    ports: ["8080:80"]
    environment:
      DATABASE_URL: postgres://shop@db/shop
      CACHE_URL: redis://cache:6379/0
    depends_on: [db, cache]
  db:
    image: postgres:15
    volumes: ["data:/var/lib/postgresql/data"]
  cache:
    image: redis:7
volumes:
  data: {}
"""
PROSE = """\
The old lighthouse stands at the end of a narrow path that follows the cliffs for two miles. Its keeper, a quiet man of
seventy, walks to the village every Tuesday to buy bread, lamp oil and a newspaper. In winter the path is often covered
with ice, and then the children of the village bring him what he needs. He tells them stories of ships that lost their
way, of storms that lasted for a week, and of the night when the lamp went out and every window in the village was lit
to guide the fishermen home.
"""
MINUTES = """\
Minutes of the meeting on 4 March. Present: Ms Adams, Mr Brown, Ms Clark. The budget for the new library was approved
with two votes to one. Mr Brown asked for a second offer for the roof before the work begins. Ms Clark will write to the
builders by the end of the week. The reading room stays open on Saturdays until a decision about the heating is made.
The next meeting is on 18 March at ten o'clock in the town hall.
"""
CHANGES = (
    (CODE, "Rename the method withdraw to take_out"),
    (PROSE, "Change the weekday to Friday"),
    (CONFIG, "Change the port 8080 to 9090"),
    (MINUTES, "Replace Mr Brown by Mr Baker"),
    (CODE, "Add a method close that sets the balance to 0, at the end of the class"),
    (PROSE, "Change the keeper's age to sixty"),
    (CONFIG, "Use postgres 16 for the database"),
    (MINUTES, "Move the next meeting to 25 March"),
)


def prompts() -> list[str]:
    """All texts with a change each."""
    return [f"{change} in this text. Answer with the whole changed text only.\n\n{text}" for text, change in CHANGES]
