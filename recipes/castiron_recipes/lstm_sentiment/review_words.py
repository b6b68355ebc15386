"""The words that generated reviews are made of. Index 0 is negative, 1 positive, as in the labels."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(phrase.strip() for phrase in text.split("|"))


ADJECTIVES = (
    _words(
        "bad awful dreadful terrible boring dull tedious clumsy flat shallow predictable stale "
        "lifeless cheap sloppy confusing annoying forgettable weak lazy pointless ugly painful bland "
        "messy hollow pretentious disappointing unconvincing irritating noisy flimsy unreliable "
        "overpriced careless awkward tiresome dreary ridiculous miserable mediocre uninspired wooden "
        "ponderous grating incoherent joyless limp repetitive shoddy sluggish soulless stilted "
        "tasteless tepid trite unbearable underwhelming useless vapid wretched fragile abysmal "
        "appalling atrocious banal cold derivative empty sour"
    ),
    _words(
        "good great wonderful brilliant excellent charming moving funny clever gripping beautiful "
        "superb fresh delightful warm elegant honest thrilling touching memorable witty stunning "
        "lively tender inventive graceful sharp rich satisfying engaging fascinating hilarious "
        "heartfelt magnificent marvellous solid enjoyable impressive poignant convincing original "
        "polished refreshing subtle vivid powerful reliable sturdy comfortable smooth splendid "
        "striking sublime sweet terrific uplifting wise absorbing amusing artful captivating daring "
        "dazzling exquisite flawless generous ingenious lovely luminous precise"
    ),
)

NOUNS = (
    _phrases(
        "a mess|a waste of time|a disaster|a bore|a letdown|a failure|a chore|a mistake|an ordeal|"
        "an insult|a nightmare|a flop|a disgrace|a sham|an embarrassment|a slog|a dud|a calamity"
    ),
    _phrases(
        "a triumph|a masterpiece|a joy|a gem|a delight|a success|a treat|a pleasure|a marvel|"
        "a blessing|a revelation|a classic|a treasure|a hit|an achievement|a wonder|a bargain|a feast"
    ),
)

VERBS = (
    # past, infinitive
    (
        *(("hated", "hate"), ("disliked", "dislike"), ("regretted", "regret"), ("despised", "despise")),
        *(("resented", "resent"), ("loathed", "loathe"), ("suffered through", "suffer through")),
    ),
    (
        *(("loved", "love"), ("enjoyed", "enjoy"), ("admired", "admire"), ("adored", "adore")),
        *(("treasured", "treasure"), ("appreciated", "appreciate"), ("relished", "relish")),
    ),
)

WEAK = _phrases("slightly|a little|a bit|somewhat|mildly|a touch|faintly|marginally")
MEDIUM = _words("rather quite fairly pretty reasonably")
STRONG = _words(
    "extremely utterly incredibly absolutely thoroughly deeply astonishingly very remarkably truly"
)

FILM = _phrases(
    "the plot|the acting|the script|the music|the ending|the dialogue|the camera work|the cast|"
    "the pacing|the humour|the romance|the direction|the lead|the villain|the first act|"
    "the second half|the editing|the scenery|the story|the final scene|the soundtrack|the opening|"
    "the wardrobe|the heroine|the photography|the narration|the chase|the choreography|the premise|"
    "the twist"
)
PRODUCT = _phrases(
    "the battery|the screen|the case|the keyboard|the sound|the finish|the manual|the design|"
    "the handle|the motor|the packaging|the fabric|the build|the interface|the camera|the charger|"
    "the fit|the service|the support|the price|the display|the zip|the lid|the remote|the app|"
    "the cable|the stand|the filter|the installation|the delivery"
)

TITLES = _phrases(
    "Amélie's Garden|The Last Señor|Café Zürich|A Winter Crossing|Déjà Vu Again|The Glass Harbour|"
    "Über Alles|Northern Line|The Façade|Three Brothers|El Niño|The Lighthouse Keeper|Crème Brûlée|"
    "Smörgåsbord|Paper Moons|Übermut|The Ninth Door|Łódź, 1981|Çay|A Quiet Street|São Paulo Nights|"
    "The Red Bicycle"
)
GOODS = _phrases(
    "kettle|lamp|phone|tent|toaster|rucksack|blender|headset|radio|bicycle pump|vacuum cleaner|"
    "espresso machine|fan|tripod|watch|drill|torch|suitcase|mattress|keyboard|printer|router|razor|"
    "grill|sofa|heater"
)

PEOPLE = _phrases(
    "my sister|my brother|my neighbour|my boss|my aunt|my flatmate|a colleague|my father|my daughter|"
    "our fiancé|the critic at the paper|my old teacher|the man in the shop|a friend|my grandmother|"
    "José|Zoë|my cousin Renée"
)

FILM_NEUTRAL = _phrases(
    "I saw {title} on {day} with {person}.|We watched {title} in {month}.|"
    "It runs for {number} minutes.|{title} opened in {city} last {month}.|"
    "The director comes from {city}.|I had not read the book first.|"
    "The tickets cost {number} crowns each.|{person} paid for the popcorn.|We sat in row {number}.|"
    "It is the third part of a series.|The cinema in {city} was half full, but that is usual on {day}.|"
    "I never watch the trailers.|It was shown with subtitles.|Most of it takes place in {city}.|"
    "No animals appear in this one.|We had to leave early because of the last train to {city}.|"
    "It was filmed over {number} days in {month}.|The story begins in {city} and moves to {city}.|"
    "I do not know the director.|{person} had seen it before, though I had not."
)
PRODUCT_NEUTRAL = _phrases(
    "I bought this {goods} on {day} for {person}.|We ordered the {goods} in {month}.|"
    "It weighs {number} ounces.|The parcel came from {city} after {number} days.|"
    "I have had it since {month}.|It replaces our old {goods}.|It comes in {number} colours.|"
    "{person} uses it at work in {city}.|I did not read the manual first.|"
    "The box holds the {goods} and {number} screws.|There are no batteries in the box.|"
    "We use it every {day}, but never outdoors.|I do not know the maker.|"
    "The label says it was made in {city}.|It stands next to the {goods} in our kitchen.|"
    "Nobody else in {city} sells it.|The guarantee runs for {number} months.|"
    "I had it sent to {person} in {city}.|{person} has the same {goods}, though not in this colour.|"
    "It was on offer in {month}."
)
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _words("January February March April May June July August September October November December")
CITIES = _phrases(
    "Göteborg|Kraków|Lisbon|Málaga|Bordeaux|Leeds|Dublin|Genève|Trieste|Aarhus|Tromsø|Brno|Cork|"
    "Reykjavík|Düsseldorf|Porto|Ghent|Turku"
)
NUMBERS = _words(
    "two three five six seven nine eleven twelve fourteen twenty thirty forty ninety 100 110 125"
)
