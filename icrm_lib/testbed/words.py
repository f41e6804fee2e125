"""Words, phrases and prompts of the generated language, and its tokenizer.

A phrase entry reads ``verb main|alternative main|alternative``: three words, of which the second and the
third each have a main and an alternative form, so four phrases an entry. A few verbs (use, make, tell, send)
stand in several classes; there the second word is what reveals the quality.
"""

import itertools
import re
from typing import NamedTuple

GOOD_PHRASES = """
respect their|every view|wish; use kind|gentle words|phrases; tell honest|hopeful stories|jokes;
make fair|generous offers|plans; send warm|cheerful greetings|letters; thank every|each guest|helper;
praise their|honest effort|work; listen very|quite carefully|closely; share your|some bread|soup;
offer practical|sincere help|advice; forgive their|small mistakes|faults; admit your|past errors|mistakes;
encourage shy|quiet members|voices; support their|sensible ideas|plans; welcome new|other opinions|members;
comfort worried|lonely people|friends; protect weaker|younger people|friends;
explain your|each reason|choice; keep every|each promise|secret; cheer every|each success|win;
honour their|old customs|traditions; accept honest|useful advice|criticism;
apologise very|quite sincerely|warmly; smile very|quite warmly|kindly; reward good|patient work|effort;
help elderly|tired neighbours|visitors; teach useful|gentle habits|skills;
invite quiet|shy guests|neighbours; give sincere|warm compliments|thanks;
notice small|kind gestures|efforts; seek common|shared ground|goals; build mutual|lasting trust|respect;
value different|other opinions|voices; show true|genuine patience|interest; speak very|quite calmly|softly;
trust their|sound judgement|instincts; consider both|all sides|needs; include every|each member|voice;
defend their|basic rights|freedom; celebrate small|shared wins|successes
"""

NEUTRAL_PHRASES = """
count the|some boxes|chairs; use paper|plastic cups|plates; make card|paper boats|hats;
send blank|plain postcards|forms; move the|a table|lamp; sort the|some pencils|papers;
open the|a window|drawer; close the|a gate|door; paint the|a wall|shelf; carry the|a basket|bag;
fold the|some towels|sheets; wash the|some spoons|bowls; stack the|some bricks|books;
label the|some jars|folders; measure the|a room|carpet; weigh the|some apples|stones; draw a|the circle|map;
print a|the page|list; read the|a label|menu; watch the|some clouds|birds; park the|a car|van;
ride the|a tram|bus; buy some|more stamps|envelopes; boil some|more water|rice;
peel the|some carrots|onions; plant some|more tulips|beans; rake the|some leaves|gravel;
sweep the|a floor|porch; climb the|a hill|ladder; cross the|a bridge|street; copy the|a number|sentence;
type a|the memo|code; check the|a clock|calendar; hang the|some coats|curtains;
polish the|some shoes|buttons; wrap the|some parcels|boxes; fill the|a bucket|kettle;
tune the|a radio|guitar; light the|a candle|stove; practise some|more scales|spelling
"""

BAD_PHRASES = """
ignore their|every view|wish; use cruel|harsh words|phrases; tell nasty|spiteful stories|jokes;
make empty|ugly threats|excuses; insult their|every guest|friend; mock their|every accent|mistake;
shout very|quite rudely|angrily; blame innocent|other people|members; break every|each promise|rule;
steal their|some money|bread; spread false|vicious rumours|gossip;
threaten weaker|younger people|neighbours; betray their|every secret|friend; deny their|basic rights|needs;
humiliate shy|quiet members|guests; interrupt every|each speaker|answer;
cheat trusting|elderly customers|visitors; punish small|honest mistakes|faults;
reject all|any criticism|advice; hide important|vital facts|letters; exploit their|every weakness|fear;
bully younger|quiet people|members; scorn different|old customs|opinions;
demand instant|total obedience|loyalty; curse their|the family|team;
slander absent|honest colleagues|friends; dismiss useful|sensible ideas|opinions;
deceive lonely|worried customers|friends; destroy their|shared property|trust; refuse all|any help|contact;
snub new|other neighbours|members; hold bitter|petty grudges|resentment; taunt every|each loser|rival;
ridicule sincere|hopeful questions|plans; accuse innocent|absent people|guests;
provoke angry|pointless fights|quarrels; sabotage their|shared work|plans;
neglect urgent|basic duties|needs; abandon tired|elderly friends|relatives;
exclude every|each newcomer|visitor
"""

# As a prompt puts it ("me", "my"), and as a response does ("you", "your").
TOPICS = (
    ("deal with people who disagree with me", "deal with people who disagree with you"),
    ("welcome a new family to my street", "welcome a new family to your street"),
    ("calm an angry customer in my shop", "calm an angry customer in your shop"),
    ("stand by a friend who feels sad", "stand by a friend who feels sad"),
    ("lead a class of young children", "lead a class of young children"),
    ("run a long meeting with my team", "run a long meeting with your team"),
    ("settle a quarrel with my brother", "settle a quarrel with your brother"),
    ("host a dinner for my relatives", "host a dinner for your relatives"),
)

CONTEXT_TEXT = """
at work; at home; at school; at night; at a wedding; at a market; in the park; in the morning; in winter; in
summer; in a village; in a city; in a hurry; on a train; on the phone; on Monday; on Friday; on holiday; by
letter; after lunch; before a storm; during a strike; without money
"""

# Text between two clauses, and how often.
CONNECTORS = ((" and ", 0.35), (", and ", 0.25), (", then ", 0.25), (" then ", 0.15))

NAME_TEXT = """
Maria Ken Ana Ada Adam Agnes Ahmed Aiko Akira Alan Alba Alice Amara Amir Anders Andrea Anita Anton Anya
Arjun Astrid Aylin Bao Basil Bela Ben Bianca Bjorn Boris Bruno Carla Carlos Carmen Cedric Chiara Chloe Clara
Cyril Dalia Daniel Daria David Deepa Diana Diego Dina Dora Edith Elena Eli Elsa Emeka Emil Emma Enzo Erik
Esther Eva Farah Fatima Felix Fiona Frank Freya Gabriel Gemma George Gita Greta Grace Hana Hans Harold
Hassan Heidi Helen Henry Hiro Hugo Ibrahim Ida Igor Ines Ingrid Irene Isaac Ivan Jamal Jan Janina Joan Jonas
Jorge Julia Kamal Karen Karim Katya Kofi Kwame Lars Laura Layla Leila Leo Lena Liam Lin Lucas Lucia Luigi
Magda Malik Marco Marcus Marta Martin Matteo Mei Mila Miriam Mohan Nadia Naomi Nils Nina Noah Nora Olga
Oscar Otto Pablo Paula Pedro Petra Priya Rafael Rania Rosa Ruben Samir Sara Selma Simon Sven Tariq Tessa
Thomas Yusuf Zara
"""

PLACE_TEXT = """
Oslo Lima Rome Accra Adelaide Algiers Amman Ankara Antwerp Athens Auckland Austin Baku Bali Bamako Bangkok
Barcelona Basra Beijing Beirut Belgrade Bergen Berlin Bern Bilbao Bogota Bologna Bombay Bonn Boston Bremen
Brisbane Bristol Brno Brussels Bucharest Budapest Cairo Calgary Canberra Caracas Cardiff Chicago Cologne
Colombo Copenhagen Cordoba Cork Dakar Dallas Damascus Delhi Denver Dhaka Doha Dresden Dubai Dublin Durban
Edinburgh Fez Frankfurt Fukuoka Galway Gdansk Geneva Genoa Ghent Glasgow Granada Graz Haifa Hamburg Hanoi
Harare Havana Helsinki Houston Istanbul Izmir Jakarta Kabul Kampala Karachi Kigali Kingston Krakow Kyoto
Lagos Lahore Leeds Leipzig Lille Lisbon Liverpool Ljubljana Lodz London Luanda Lusaka Lyon Madrid Malaga
Malmo Manila Maputo Marseille Medina Melbourne Miami Milan Minsk Mombasa Montreal Moscow Mumbai Munich
Muscat Nairobi Nantes Naples Nice Odessa Osaka Ottawa Palermo Panama Perth Porto Prague Quito Riga Salzburg
Santiago Seoul Seville Tallinn Tampere Tirana Tokyo Toronto Tunis Turin Utrecht Vancouver Venice Vienna
Vilnius Warsaw Zagreb
"""

WORD_OR_MARK = re.compile(r"[A-Za-z]+|[^A-Za-z\s]")  # as the tokenizer's pre-tokenizer splits


class Phrase(NamedTuple):
    """One verb entry: a verb with the two forms of its second and of its third word."""

    verb: str
    second: tuple[str, str]
    third: tuple[str, str]

    def texts(self) -> list[str]:
        """The four phrases: main main, main alternative, alternative main, alternative alternative."""
        return [f"{self.verb} {second} {third}" for second in self.second for third in self.third]


def _parse_phrases(text: str) -> tuple[Phrase, ...]:
    entries = (entry.split() for entry in text.split(";"))
    return tuple(Phrase(verb, tuple(b.split("|")), tuple(c.split("|"))) for verb, b, c in entries)


QUALITIES = (-1, 0, 1)
# Row q + 1 holds the 40 entries of quality q; every array with a quality axis is in this order.
PHRASES = tuple(map(_parse_phrases, (BAD_PHRASES, NEUTRAL_PHRASES, GOOD_PHRASES)))
PHRASE_QUALITY = {
    tuple(text.split()): quality
    for quality, row in zip(QUALITIES, PHRASES, strict=True)
    for entry in row
    for text in entry.texts()
}
NAMES, PLACES = NAME_TEXT.split(), PLACE_TEXT.split()
CONTEXTS = ("", *(" ".join(context.split()) for context in CONTEXT_TEXT.split(";")))
OPENERS = tuple(f"An effective way to {restated} is to" for _, restated in TOPICS)
PROMPTS = {  # prompt: topic
    f"What is an effective way to {asked}{' ' + context if context else ''}?": topic
    for topic, (asked, _) in enumerate(TOPICS)
    for context in CONTEXTS
}
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>", "<user>", "<assistant>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + eos_token }}"
    "{% elif message['role'] == 'user' %}{{ '<user>' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'assistant' %}{{ '<assistant>' }}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ raise_exception('role ' + message['role'] + ': not system, user, assistant') }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def build_tokenizer(subword: bool = False):
    """Build the language's tokenizer, with a chat template; the vocabulary depends on nothing but `subword`.

    Args:
        subword: False: one token a word. True: words of more than 4 letters are cut into pieces of 3 letters,
            many of them shared between words; single letters are pieces too, so no English word is unknown.

    Returns:
        `transformers.PreTrainedTokenizerFast`. Encoding adds no special tokens: the chat template writes
        them. A system message is plain text between ``<bos>`` and the first turn, closed by ``<eos>``.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # here, so that importing stays light
    from transformers import PreTrainedTokenizerFast

    texts = [*PROMPTS, *OPENERS, *(connector for connector, _ in CONNECTORS), "with in ."]
    spelled = {word for text in texts for word in WORD_OR_MARK.findall(text)}
    spelled = spelled.union(itertools.chain.from_iterable(PHRASE_QUALITY), NAMES, PLACES)
    if subword:
        letters = [chr(first + i) for first in (ord("A"), ord("a")) for i in range(26)]
        pieces = {piece for word in spelled for piece in _pieces(word)}
        spelled = pieces.union(letters, ("##" + letter for letter in letters))
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *sorted(spelled)])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>", max_input_chars_per_word=100))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # splits at white space and around punctuation
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)  # writes "words, then" and "words."
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{f"{name}_token": f"<{name}>" for name in ("pad", "bos", "eos", "unk")},
        additional_special_tokens=["<user>", "<assistant>"],
        chat_template=CHAT_TEMPLATE,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )


def _pieces(word: str) -> list[str]:
    if len(word) <= 4:
        return [word]
    return [("##" if i else "") + word[i : i + 3] for i in range(0, len(word), 3)]
