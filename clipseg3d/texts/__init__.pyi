from .facts import TumourFacts as TumourFacts
from .facts import measure_facts as measure_facts
from .facts import measure_regions as measure_regions
from .prompt_wording import Request as Request
from .prompt_wording import write_prompt as write_prompt
from .wording import Statement as Statement
from .wording import statement_of as statement_of
from .wording import write_text as write_text
