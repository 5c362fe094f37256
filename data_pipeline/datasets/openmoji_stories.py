"""What goes together, for short stories of pictures: themes with emoji, each with the word that a story uses for it, or
its English name where none is given."""

from __future__ import annotations

_THEMES = {
    "Breakfast": (
        "☕ coffee, 🍵 tea, 🥛 milk, 🍞 bread, 🥐 croissant, 🥯 bagel, 🥞 pancakes, 🧇 waffle, 🧈 butter, "
        "🧀 cheese, 🥚 egg, 🍳 fried egg, 🥓 bacon, 🍯 honey"
    ),
    "A fruit salad": (
        "🍓 strawberry, 🍎 apple, 🍐 pear, 🍊 orange, 🍋 lemon, 🍌 banana, 🍉 melon, 🍇 grapes, 🫐 blueberries, "
        "🍒 cherries, 🍑 peach, 🥭 mango, 🍍 pineapple, 🥝 kiwi"
    ),
    "In the vegetable garden": (
        "🍅 tomato, 🥕 carrot, 🌽 corn, 🥔 potato, 🧅 onion, 🧄 garlic, 🥒 cucumber, 🥬 lettuce, 🍆 aubergine, "
        "🫑 pepper, 🌶 chilli, 🫛 peas"
    ),
    "Dinner with friends": (
        "🍕 pizza, 🍝 pasta, 🍔 burger, 🍟 fries, 🌮 taco, 🍣 sushi, 🍜 noodles, 🍛 curry, 🥗 salad, 🍲 stew, "
        "🍷 wine, 🍺 beer"
    ),
    "Sweets": (
        "🍦 ice cream, 🍩 doughnut, 🍪 biscuit, 🎂 birthday cake, 🍰 cake, 🧁 cupcake, 🍫 chocolate, 🍬 sweet, "
        "🍭 lollipop, 🍮 custard"
    ),
    "On the farm": "🐄 cow, 🐖 pig, 🐑 sheep, 🐐 goat, 🐓 hen, 🐎 horse, 🦆 duck, 🚜 tractor, 🐕 dog, 🐈 cat",
    "At the zoo": (
        "🐘 elephant, 🦒 giraffe, 🦓 zebra, 🐅 tiger, 🦍 gorilla, 🦏 rhino, 🦛 hippo, 🐆 leopard, 🦘 kangaroo, "
        "🐼 panda, 🐊 crocodile"
    ),
    "In the forest": (
        "🌲 fir, 🌳 tree, 🍄 mushroom, 🦊 fox, 🦌 deer, 🐻 bear, 🐺 wolf, 🦉 owl, 🐿 squirrel, 🦔 hedgehog, "
        "🍂 leaves, 🐗 boar"
    ),
    "In the sea": (
        "🐟 fish, 🐠 reef fish, 🐬 dolphin, 🐳 whale, 🦈 shark, 🐙 octopus, 🦀 crab, 🐢 turtle, 🦑 squid, "
        "🦞 lobster, 🐚 shell, 🦭 seal"
    ),
    "In the air": (
        "🐦 bird, 🦅 eagle, 🦋 butterfly, 🐝 bee, 🦇 bat, 🦢 swan, 🐞 ladybird, 🪁 kite, 🎈 balloon, "
        "✈ aeroplane, 🚁 helicopter"
    ),
    "Flowers": (
        "🌹 rose, 🌷 tulip, 🌻 sunflower, 🌼 daisy, 🌸 cherry blossom, 🌺 hibiscus, 💐 bouquet, 🪷 lotus, 🪻 hyacinth"
    ),
    "Weather": (
        "☀ sun, ⛅ some clouds, ☁ clouds, 🌧 rain, ⛈ thunderstorm, 🌨 snow, 🌪 tornado, 🌈 rainbow, 🌫 fog, ⚡ lightning"
    ),
    "At night": (
        "🌙 moon, ⭐ star, 🌟 glowing star, 🌠 shooting star, 🌌 Milky Way, 🛌 sleep, 🦉 owl, 🦇 bat, 🔦 torch, 🌃 city"
    ),
    "Phases of the moon": (
        "🌑 new moon, 🌒 waxing crescent, 🌓 first quarter, 🌔 waxing gibbous, 🌕 full moon, 🌖 waning gibbous, "
        "🌗 last quarter, 🌘 waning crescent"
    ),
    "Sports": (
        "⚽ football, 🏀 basketball, 🏈 American football, ⚾ baseball, 🎾 tennis, 🏐 volleyball, "
        "🏓 table tennis, 🏸 badminton, 🥊 boxing, 🏏 cricket, 🎳 bowling, ⛳ golf"
    ),
    "Music": (
        "🎸 guitar, 🎹 piano, 🎻 violin, 🎺 trumpet, 🥁 drum, 🎷 saxophone, 🪗 accordion, 🎤 microphone, "
        "🎧 headphones, 🪈 flute"
    ),
    "Tools": (
        "🔨 hammer, 🔧 spanner, 🪛 screwdriver, 🪚 saw, 🔩 bolt, 🪜 ladder, 🧰 toolbox, 🪓 axe, 📏 ruler, ⛏ pick"
    ),
    "At school": (
        "📚 books, 📏 ruler, ✏ pencil, 🎒 backpack, ✂ scissors, 📐 set square, 🖍 crayon, 🔬 microscope, "
        "🧮 abacus, 🌍 globe, 📎 paperclip"
    ),
    "In the office": (
        "💻 laptop, 🖨 printer, ☎ telephone, 📅 calendar, 📎 paperclip, 🖱 mouse, ⌨ keyboard, 📁 folder, "
        "✉ letter, 🪑 chair, 🗑 bin"
    ),
    "On the road": (
        "🚗 car, 🚕 taxi, 🚌 bus, 🚓 police car, 🚑 ambulance, 🚒 fire engine, 🚚 lorry, 🏍 motorcycle, "
        "🚲 bicycle, 🛵 scooter, 🚦 traffic light"
    ),
    "A journey": (
        "🧳 suitcase, 🚂 train, ✈ aeroplane, ⛴ ferry, 🗺 map, 🏨 hotel, 🏖 beach, 📷 camera, 🧭 compass, "
        "⛺ tent, 🛂 passport"
    ),
    "Clothes": (
        "👕 shirt, 👖 jeans, 👗 dress, 🧥 coat, 🧦 socks, 🧤 gloves, 🧣 scarf, 👟 trainers, 👒 hat, 👔 tie, 🩳 shorts"
    ),
    "In winter": (
        "⛄ snowman, ❄ snowflake, 🎿 skis, 🛷 sledge, ⛸ skates, 🧣 scarf, 🧤 gloves, 🏂 snowboarder, 🎄 Christmas tree"
    ),
    "A birthday": (
        "🎂 cake, 🎁 present, 🎈 balloon, 🎉 popper, 🕯 candle, 🍾 champagne, 💐 flowers, 🥳 party face, 🪅 piñata"
    ),
    "In the kitchen": (
        "🍴 fork and knife, 🥄 spoon, 🔪 knife, 🍽 plate, 🧂 salt, 🫖 teapot, 🍳 frying pan, 🥣 bowl, 🧽 sponge, "
        "🥢 chopsticks"
    ),
    "At home": (
        "🛋 sofa, 🛏 bed, 🪑 chair, 🚪 door, 🪟 window, 🛁 bath, 🚿 shower, 🪞 mirror, 💡 lamp, 📺 television, "
        "🧹 broom, 🔑 key"
    ),
    "In space": (
        "🚀 rocket, 🛰 satellite, 🪐 Saturn, 🌍 Earth, ☄ comet, 👽 alien, 🛸 flying saucer, 🌞 sun, "
        "🔭 telescope, ⭐ star"
    ),
    "Moods": (
        "😀 happy, 😢 sad, 😡 angry, 😱 afraid, 😴 tired, 😍 in love, 😮 surprised, 🤔 thoughtful, 😂 amused, "
        "😌 relieved, 🥱 bored"
    ),
    "Hearts": (
        "❤ red, 🧡 orange, 💛 yellow, 💚 green, 💙 blue, 💜 purple, 🤎 brown, 🖤 black, 🤍 white, 🩷 pink, "
        "🩶 grey, 🩵 light blue"
    ),
    "Circles": "🔴 red, 🟠 orange, 🟡 yellow, 🟢 green, 🔵 blue, 🟣 purple, 🟤 brown, ⚫ black, ⚪ white",
    "Squares": "🟥 red, 🟧 orange, 🟨 yellow, 🟩 green, 🟦 blue, 🟪 purple, 🟫 brown, ⬛ black, ⬜ white",
    "Signs of the zodiac": "♈, ♉, ♊, ♋, ♌, ♍, ♎, ♏, ♐, ♑, ♒, ♓",
    "Years in China": (
        "🐀 rat, 🐂 ox, 🐅 tiger, 🐇 rabbit, 🐉 dragon, 🐍 snake, 🐎 horse, 🐐 goat, 🐒 monkey, 🐓 rooster, "
        "🐕 dog, 🐖 pig"
    ),
    "Flags of Europe": ("🇫🇷, 🇩🇪, 🇮🇹, 🇪🇸, 🇵🇹, 🇬🇧, 🇮🇪, 🇳🇱, 🇧🇪, 🇨🇭, 🇦🇹, 🇵🇱, 🇨🇿, 🇸🇪, 🇳🇴, 🇩🇰, 🇫🇮, 🇬🇷, 🇺🇦, 🇷🇴, 🇭🇺, 🇮🇸"),
    "Flags of Asia": ("🇯🇵, 🇨🇳, 🇰🇷, 🇮🇳, 🇮🇩, 🇹🇭, 🇻🇳, 🇲🇾, 🇵🇭, 🇸🇬, 🇳🇵, 🇮🇷, 🇸🇦, 🇹🇷, 🇮🇱, 🇰🇿, 🇵🇰, 🇧🇩, 🇱🇰, 🇲🇳"),
    "Flags of Africa": ("🇪🇬, 🇳🇬, 🇰🇪, 🇿🇦, 🇬🇭, 🇪🇹, 🇹🇿, 🇩🇿, 🇹🇳, 🇸🇳, 🇲🇱, 🇺🇬, 🇨🇲, 🇦🇴, 🇲🇿, 🇲🇬, 🇷🇼, 🇸🇴, 🇱🇾, 🇿🇲"),
    "Flags of the Americas": ("🇺🇸, 🇨🇦, 🇲🇽, 🇧🇷, 🇦🇷, 🇨🇱, 🇵🇪, 🇨🇴, 🇻🇪, 🇺🇾, 🇧🇴, 🇵🇾, 🇪🇨, 🇨🇺, 🇯🇲, 🇵🇦, 🇨🇷, 🇬🇹, 🇭🇹"),
    "Flags of Oceania": "🇦🇺, 🇳🇿, 🇫🇯, 🇵🇬, 🇼🇸, 🇹🇴, 🇻🇺, 🇸🇧, 🇵🇼, 🇫🇲, 🇰🇮, 🇳🇷, 🇹🇻",
}


def _read(items: str) -> dict[str, str]:
    pairs = (item.partition(" ")[::2] for item in items.split(", "))
    return {"-".join(f"{ord(each):04X}" for each in characters): word for characters, word in pairs}


STORIES: dict[str, dict[str, str]] = {theme: _read(items) for theme, items in _THEMES.items()}
"""Theme → code points without the sign for emoji style → word, "" for the English name."""
