"""Words of the generated sample: products by category, and phrases by language."""

from __future__ import annotations

PRODUCTS: tuple[tuple[str, int, tuple[str, ...]], ...] = (
    ("Clothing >> Women's Clothing >> Dresses", 45, ("Wrap Dress", "Maxi Dress", "Shirt Dress", "Evening Dress")),
    ("Clothing >> Men's Clothing >> Shirts", 35, ("Oxford Shirt", "Flannel Shirt", "Polo Shirt", "Linen Shirt")),
    ("Clothing >> Sportswear >> Running", 40, ("Running Shorts", "Training Tights", "Windbreaker", "Running Vest")),
    ("Footwear >> Women's Footwear >> Boots", 90, ("Ankle Boots", "Chelsea Boots", "Rain Boots", "Winter Boots")),
    ("Footwear >> Sports Shoes >> Running Shoes", 95, ("Trail Shoes", "Road Running Shoes", "Racing Flats")),
    ("Home >> Kitchen >> Cookware", 60, ("Frying Pan", "Saucepan", "Dutch Oven", "Wok", "Baking Tray")),
    ("Home >> Furniture >> Living Room", 420, ("Sofa Bed", "Coffee Table", "Armchair", "Bookcase", "Floor Lamp")),
    ("Home >> Garden >> Tools", 30, ("Pruning Shears", "Garden Hose", "Watering Can", "Hand Trowel")),
    ("Electronics >> Audio >> Headphones", 120, ("Headphones", "Earbuds", "Studio Monitors", "Headset")),
    ("Electronics >> Computers >> Accessories", 50, ("Mechanical Keyboard", "Trackball", "Docking Station", "Webcam")),
    ("Electronics >> Cameras >> Lenses", 480, ("Prime Lens", "Zoom Lens", "Macro Lens", "Wide-Angle Lens")),
    ("Sports >> Cycling >> Parts", 55, ("Bike Saddle", "Handlebar Tape", "Pedals", "Bike Light Set")),
    ("Sports >> Outdoor >> Camping", 150, ("Two-Person Tent", "Sleeping Bag", "Camping Stove", "Trekking Poles")),
    ("Beauty >> Skin Care >> Face", 22, ("Face Serum", "Day Cream", "Cleansing Balm", "Clay Mask")),
    ("Toys >> Games >> Board Games", 38, ("Board Game", "Card Game", "Puzzle", "Dice Set")),
    ("Books >> Non-Fiction >> Cooking", 25, ("Cookbook", "Baking Guide", "Spice Companion")),
    ("Jewellery >> Necklaces >> Silver", 70, ("Silver Necklace", "Pendant", "Charm Chain")),
    ("Baby >> Nursery >> Bedding", 40, ("Crib Sheet", "Baby Blanket", "Sleep Sack")),
)
"""(category path, typical price in dollars, product names)."""

ADJECTIVES = (
    "Classic", "Modern", "Handmade", "Lightweight", "Compact", "Premium", "Everyday", "Vintage", "Waterproof", "Soft",
    "Foldable", "Recycled", "Organic", "Professional", "Slim", "Sturdy", "Quiet", "Warm", "Bright", "Minimal",
)  # fmt: skip
COLOURS = ("Black", "Navy", "Forest Green", "Burgundy", "Ivory", "Grey", "Copper", "Sky Blue", "Mustard", "Rose")
BRANDS = (
    "Aldermoor", "Brightwater", "Corvane", "Dunmark", "Eastfold", "Fennick", "Galloway & Finch", "Harrowgate", "Ilmari",
    "Juniper Lane", "Kestrel", "Lindqvist", "Marlowe", "Northbeck", "Oakhurst", "Pellworm", "Quarrion", "Rookwood",
    "Silvertarn", "Thistledown",
)  # fmt: skip

PHRASES: dict[str, tuple[str, ...]] = {
    "en": (
        "Made to last and easy to look after.", "Free returns within thirty days.", "Designed for everyday use.",
        "A favourite of our customers for years.", "The gift that is always right.", "New colours for this season.",
    ),
    "de": (
        "Gefertigt, um lange zu halten, und leicht zu pflegen.", "Kostenlose Rückgabe innerhalb von dreißig Tagen.",
        "Für den täglichen Gebrauch entworfen.", "Seit Jahren ein Liebling unserer Kunden.",
    ),
    "fr": (
        "Conçu pour durer et facile à entretenir.", "Retours gratuits pendant trente jours.",
        "Le cadeau qui plaît toujours.", "Les nouvelles couleurs de la saison sont arrivées.",
    ),
    "es": (
        "Hecho para durar y fácil de cuidar.", "Devoluciones gratuitas durante treinta días.",
        "Diseñado para el uso diario.", "El regalo que siempre acierta.",
    ),
    "pt": (
        "Feito para durar e fácil de cuidar.", "Devolução gratuita em trinta dias.", "O presente que sempre agrada.",
    ),
}  # fmt: skip

MARKETS: tuple[tuple[str, str, float, str, int], ...] = (
    ("US", "USD", 1.0, "en", 40),
    ("GB", "GBP", 0.8, "en", 14),
    ("DE", "EUR", 0.9, "de", 12),
    ("FR", "EUR", 0.9, "fr", 9),
    ("ES", "EUR", 0.9, "es", 6),
    ("IN", "INR", 80.0, "en", 8),
    ("BR", "BRL", 5.0, "pt", 6),
    ("CA", "CAD", 1.3, "en", 5),
)
"""(country, currency, units of it per dollar, language, weight)."""

AGES = ("18-24", "25-29", "30-34", "35-39", "40-44", "45-49", "50-64", "65+")
GENDERS = ("F", "M")
DEVICES = ("desktop", "mobile", "tablet")
INTERESTS = 114
"""Interests are numbers from 1 on; low ones are frequent."""
